"""The OpenAPI 3.1 document of a running server: its routes as they are, with examples from its models' golden rows.

A route needs nothing here to be listed: the first line of its function's docstring is its summary. `serve.schemas` adds
what cannot be seen from a route: media types and schemas of bodies, and the query parameters it reads.

Source: https://spec.openapis.org/oas/v3.1.0
"""

import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import version as version_of
from typing import Any, NamedTuple
from zipfile import BadZipFile

import msgspec
import numpy as np
from flask import Flask, Response

from serve import codec, continuations, protocol
from serve.errors import told_as_text
from serve.guard import scope_of
from serve.manifest import Manifest
from serve.protocol import Wanted
from serve.runtime import ModelLike, golden_rows
from serve.schemas import (
    ANYTHING,
    BINARY,
    BODIES,
    COUNT,
    EXAMPLES,
    JSON,
    NO_BODY_NEEDED,
    NOT_READY,
    SCHEMAS,
    SECONDS,
    STATUS,
    TEXT,
    list_of,
    object_of,
    ref,
)
from serve.standard import cached
from serve.store import Shelf

MOST_VALUES = 1024  # of one example; larger inputs are described by their schema alone

TAGS = {
    "/v2": (
        "Open Inference Protocol v2",
        "What Triton's, KServe's and other v2 clients speak; JSON and binary tensors.",
    ),
    "/v1": (
        "TensorFlow Serving v1",
        "What clients of TensorFlow Serving's REST interface speak; JSON rows and columns.",
    ),
    "/admin": ("Administration", "For keys of scope admin."),
    "": ("People and scripts", "Files, rows and texts in; labels and values out."),
}
PART = r"{(\w+)}"
PREDICTING = ("/infer", ":predict", "/generate", "/generate_stream", "/completions")  # ends of paths
OPERATIONS = ("/healthz", "/metrics", "/openapi.json", "/docs")
ABOUT = """Predictions of ONNX models. Send `X-Request-Id` to find a request again in the logs; every answer carries one. \
Bodies may be packed with gzip or deflate. An error is JSON with a code and a message that says what to do. A server with \
keys wants `Authorization: Bearer <key>`."""


def openapi_routes(app: Flask, store: Shelf) -> None:
    """Add `/openapi.json` and `/docs`, which list every route the app has by the first time they are asked for."""
    known: dict[bytes, bytes] = {}

    @app.get("/openapi.json")
    def openapi() -> Response:
        """This document."""
        served = [(name, *versions) for name, versions in list(store.models.items())]
        key = msgspec.json.encode(served)
        if key not in known:
            made = msgspec.json.encode(document(app, store))
            known.clear()
            known[key] = made
        response = Response(known[key], mimetype=JSON)
        response.set_etag(hashlib.sha256(known[key]).hexdigest()[:32])
        return cached(response)

    @app.get("/docs")
    def docs() -> Response:
        """A page to read and try this interface."""
        return app.send_static_file("docs.html")


def document(app: Flask, store: Shelf) -> dict[str, Any]:
    """Describe every route of the app.

    Args:
        app: the app, with all of its routes.
        store: whose models give the examples.

    Returns:
        The OpenAPI document; it holds only what JSON has.
    """
    models = [next(reversed(versions.values())) for versions in list(store.models.values()) if versions]
    examples = {model.name: dict(_examples(model)) for model in models}
    paths: dict[str, Any] = {}
    for route in _routes(app):
        paths.setdefault(route.listed, {})[route.method.lower()] = _operation(app, route, models, examples)
    rows = {_row_name(model.manifest): _row_schema(model.manifest) for model in models}
    schemas = {**SCHEMAS, **rows}
    if rows:
        one = {"anyOf": [ref(name) for name in rows]}
        schemas["Rows"] = {**SCHEMAS["Rows"], "oneOf": [one, list_of(one, minItems=1)]}
    tags = [{"name": name, "description": text} for name, text in TAGS.values()]
    tags.append({"name": "Operations", "description": "Health, figures and this document."})
    return {
        "openapi": "3.1.0",
        "info": {"title": "zooroad", "version": version_of("zooroad"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "a key or a JSON Web Token"}
            },
        },
    }


class _Route(NamedTuple):
    path: str  # as the app has it, with {name} for what varies
    listed: str  # as the document has it, where two routes must not differ in the name of a part alone
    method: str
    endpoint: str


def _routes(app: Flask) -> list[_Route]:
    """Every route but the page's files, in the order in which they were added, those without a version first."""
    found: list[tuple[str, str, str]] = []
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static" or rule.methods is None or (rule.rule.endswith("/") and rule.rule != "/"):
            continue
        path = re.sub(r"<(?:[^<>:]+:)?([^<>]+)>", r"{\1}", rule.rule)
        found += [(path, method, rule.endpoint) for method in sorted(rule.methods - {"HEAD", "OPTIONS"})]
    alike: dict[tuple[str, int], dict[str, None]] = {}  # names of a varying part, by its place in paths of one shape
    for path, _, _ in found:
        for place, name in enumerate(re.findall(PART, path)):
            alike.setdefault((re.sub(PART, "{}", path), place), {})[name] = None
    routes = []
    for path, method, endpoint in found:
        shape = re.sub(PART, "{}", path)
        parts = ["_or_".join(alike[shape, place]) for place in range(shape.count("{}"))]
        routes.append(_Route(path, shape.replace("{}", "{{{}}}").format(*parts), method, endpoint))
    order = list(dict.fromkeys(_plain(route.path) for route in routes))
    return sorted(routes, key=lambda route: (order.index(_plain(route.path)), route.path != _plain(route.path)))


def _plain(path: str) -> str:
    return path.replace("/versions/{version}", "")


def _operation(
    app: Flask, route: _Route, models: list[ModelLike], examples: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    path, listed, method, endpoint = route
    summary, _, description = (app.view_functions[endpoint].__doc__ or endpoint.replace("_", " ")).partition("\n")
    name = f"{method} {_plain(path)}"
    sent, answered, query = BODIES.get(name, ({} if method in ("GET", "DELETE") else {JSON: ANYTHING}, {JSON: {}}, ()))
    error = {
        "description": "refused",
        "content": {JSON: {"schema": ref("ErrorText" if told_as_text(path) else "Error")}},
    }
    status = STATUS.get(name, "200")
    content = {media: {"schema": schema} for media, schema in answered.items()}
    responses: dict[str, Any] = {status: {"description": "answered", **({"content": content} if content else {})}}
    if path.endswith(NOT_READY):
        either = {"anyOf": [*answered.values(), ref("ErrorText")]}
        responses["503"] = {"description": "not ready", "content": {JSON: {"schema": either}}}
    told: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{listed}").rstrip("_"),
        "tags": [_tag(path)],
        "summary": summary.strip().rstrip("."),
        "parameters": [*_path_parameters(listed, models), *(_query(*each) for each in query)],
        "responses": {**responses, "default": error},
    }
    if description.strip():
        told["description"] = re.sub(r"\s*\n\s*", " ", description.strip())
    scope = scope_of(path)
    if scope is not None:
        told["security"] = [{"key": []}] if scope == "admin" else [{}, {"key": []}]
    if sent:
        bodies = {media: {"schema": schema} for media, schema in sent.items()}
        told["requestBody"] = {"required": NO_BODY_NEEDED.fullmatch(path) is None, "content": bodies}
        given = {_safe(model): ({"summary": model}, each[name]) for model, each in examples.items() if name in each}
        if name in EXAMPLES:
            given = {"example": ({}, EXAMPLES[name])}
        for place, part in ((bodies, 0), (content, 1)):
            shown = {key: {**about, "value": pair[part]} for key, (about, pair) in given.items() if part < len(pair)}
            if shown:
                place[JSON]["examples"] = shown
    if BINARY in sent:
        told["parameters"].append(_header_length())
    if path.endswith(PREDICTING) or path.startswith("/predict/"):
        told["parameters"] += [
            _header("X-Request-Timeout", SECONDS, "seconds in which the answer is wanted"),
            _header("X-Traffic-Key", TEXT, "requests of one key keep to one version in experiments"),
        ]
    if not told["parameters"]:
        del told["parameters"]
    return told


def _tag(path: str) -> str:
    if path in OPERATIONS:
        return "Operations"
    return next(name for prefix, (name, _) in TAGS.items() if path.startswith(prefix))


def _path_parameters(path: str, models: list[ModelLike]) -> Iterator[dict[str, Any]]:
    for name in re.findall(PART, path):
        schema: dict[str, Any] = {**TEXT, "minLength": 1}
        if name == "model" and models:
            schema["enum"] = [model.name for model in models]
        elif "model" in name.split("_or_") and models:
            schema["examples"] = [model.name for model in models]
        if name == "version" and models:
            schema["examples"] = list(dict.fromkeys(model.version for model in models))
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header_length() -> dict[str, Any]:
    text = "bytes of JSON at the start of the body; raw tensors follow it in the order of the inputs"
    return _header("Inference-Header-Content-Length", {**COUNT, "minimum": 1}, text)


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _safe(name: str) -> str:
    """A name that the document's components may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _row_name(manifest: Manifest) -> str:
    return f"{_safe(manifest.name)}-row"


def _row_schema(manifest: Manifest) -> dict[str, Any]:
    """One row of a model as `/predict` takes it."""
    properties: dict[str, Any] = {}
    for port in manifest.inputs:
        if not port.columns or manifest.kind == "series":
            about = f"{port.dtype} of shape {port.sizes}" + (f", {port.unit}" if port.unit else "")
            properties[port.name] = {**(TEXT if port.dtype == "BYTES" else list_of({})), "description": about}
            continue
        for column in port.columns:
            kinds = ["string", "null"] if port.dtype == "BYTES" else ["number", "null"]
            properties[column] = {"type": kinds}
            if column in manifest.choices:
                properties[column]["examples"] = list(manifest.choices[column])
    return object_of(properties, required=[], additionalProperties=False, description=f"one row for {manifest.name}")


def _examples(model: ModelLike) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What may be sent to a model and, if it is always the same, the answer, by operation: its first golden rows."""
    manifest = model.manifest
    try:
        golden = golden_rows(model.bundle)
    except (OSError, ValueError, EOFError, BadZipFile):  # the files of a served version may have left the store
        return
    inputs = {port.name: golden[f"input/{port.name}"][:1] for port in manifest.inputs if golden}
    if not golden or sum(array.size for array in inputs.values()) > MOST_VALUES:
        return
    outputs = {port.name: golden[f"output/{port.name}"][:1] for port in manifest.outputs}
    if manifest.generation:
        yield from _written(manifest, codec.to_row(inputs, 0, manifest))
        if sum(array.size for array in outputs.values()) > MOST_VALUES:  # probabilities of every token at every place
            return
    sent: dict[str, Any] = {"id": "one", "inputs": [], "outputs": [{"name": port.name} for port in manifest.outputs]}
    for port in manifest.inputs:
        array = inputs[port.name]
        data = _jsonable(array.ravel())
        sent["inputs"].append({"name": port.name, "shape": list(array.shape), "datatype": port.dtype, "data": data})
    asked = protocol.Request({}, [Wanted(port.name) for port in manifest.outputs], "one")
    answered, _ = protocol.encode(model.name, model.version, manifest, outputs, asked)
    yield "POST /v2/models/{model}/infer", (sent, msgspec.json.decode(answered))
    named = {name: _jsonable(array[0]) for name, array in inputs.items()}
    row = next(iter(named.values())) if len(named) == 1 else named
    answered = protocol.encode_v1(manifest, outputs, protocol.Request({}))
    yield "POST /v1/models/{model}:predict", ({"instances": [row]}, msgspec.json.decode(answered))
    if manifest.generation:
        return
    try:
        row = codec.to_row(inputs, 0, manifest)
        read = codec.read(model.bundle.folder, manifest, inputs)
        predictions = codec.answers(outputs, manifest, top=5, read=read)
    except (KeyError, ValueError, TypeError):  # a kind of model that has tensors only
        return
    told = {"model": model.name, "version": model.version, "predictions": predictions, "notes": []}
    yield "POST /predict/{model}", (row, told)
    yield "POST /jobs/{model}", (row,)
    if manifest.task != "embedding":
        yield "POST /explain/{model}", (row,)
    elif manifest.kind == "image":
        ((name, image),) = inputs.items()
        pair = {name: _jsonable(np.concatenate([image, golden[f"input/{name}"][-1:]]))}
        yield "POST /explain/{model}", (pair,)
        yield "POST /verify/{model}", (pair,)
        yield "POST /search/{model}", (row,)
        yield "PUT /admin/gallery/{model}/{name}", (row,)


def _written(manifest: Manifest, row: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What may be sent to a model that writes texts, or paints; what it answers depends on what is asked beside."""
    (text,) = row.values()
    if not continuations.paints(manifest):
        few = {"max_tokens": min(20, manifest.generation["length"] or 20)}
        sent = {"text_input": text, "parameters": {} if continuations.writes(manifest) else {**few, "temperature": 0.8}}
        yield "POST /v2/models/{model}/generate", (sent,)
        yield "POST /v2/models/{model}/generate_stream", (sent,)
        yield "POST /v1/completions", ({"model": manifest.name, "prompt": text, **few},)
    yield "POST /predict/{model}", (row,)
    yield "POST /jobs/{model}", (row,)


def _jsonable(array: np.ndarray) -> list[Any]:
    """Lists with null for what JSON has no number for."""
    return msgspec.json.decode(msgspec.json.encode(array.tolist()))
