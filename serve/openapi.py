"""The OpenAPI 3.1 document of a running server: its routes as they are, with examples from its models' golden rows.

A route needs nothing here to be listed: the first line of its function's docstring is its summary. `BODIES` adds what
cannot be seen from a route: media types and schemas of bodies, and the query parameters it reads.

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

from serve import admin, boxes, codec, embeddings, masks, protocol
from serve.guard import scope_of
from serve.manifest import Manifest
from serve.protocol import Wanted
from serve.runtime import ModelLike, golden_rows
from serve.standard import cached
from serve.store import Shelf
from serve.tensors import DTYPES, LARGEST_SIZE, MOST_AXES

MOST_VALUES = 1024  # of one example; larger inputs are described by their schema alone

JSON, BINARY = "application/json", "application/octet-stream"
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
OPERATIONS = ("/healthz", "/metrics", "/openapi.json", "/docs")
ABOUT = """Predictions of ONNX models. Send `X-Request-Id` to find a request again in the logs; every answer carries one. \
Bodies may be packed with gzip or deflate. An error is JSON with a code and a message that says what to do. A server with \
keys wants `Authorization: Bearer <key>`."""


def _object(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required or properties), **more}


def _list(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SECONDS: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
ANYTHING: dict[str, Any] = {"type": "object"}
DATATYPE = {"type": "string", "enum": list(DTYPES)}
SHAPE = _list({"type": "integer", "minimum": -1}, description="-1 where the size is free, as that of a batch")
SENT_SHAPE = _list({"type": "integer", "minimum": 0, "maximum": LARGEST_SIZE}, maxItems=MOST_AXES)
PORT = _object({"name": TEXT, "datatype": DATATYPE, "shape": SHAPE})
DATA = _list({}, description="values, flat in row order or as nested lists; null where one is missing")
SIZE = {**COUNT, "description": "bytes of this tensor after the JSON"}
IMAGE = {"type": "string", "contentMediaType": "image/png"}
SIMILARITY = {"type": "number", "minimum": -1, "maximum": 1, "description": "cosine of the two embeddings"}

SCHEMAS: dict[str, Any] = {
    "Error": _object({"error": _object({"code": TEXT, "message": TEXT})}),
    "ErrorText": _object({"error": TEXT, "code": TEXT}),
    "Server": _object({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)}),
    "Live": _object({"live": BOOLEAN}),
    "Ready": _object({"ready": BOOLEAN}),
    "ModelReady": _object({"name": TEXT, "version": TEXT, "ready": BOOLEAN}),
    "ModelMetadata": _object(
        {"name": TEXT, "versions": _list(TEXT), "platform": TEXT, "inputs": _list(PORT), "outputs": _list(PORT)}
    ),
    "ModelConfiguration": _object({"name": TEXT, "platform": TEXT, "max_batch_size": COUNT}),
    "InferRequest": _object(
        {
            "id": {**TEXT, "description": "comes back in the answer"},
            "inputs": _list(
                _object(
                    {
                        "name": TEXT,
                        "datatype": DATATYPE,
                        "shape": SENT_SHAPE,
                        "data": DATA,
                        "parameters": _object({"binary_data_size": SIZE}, required=[]),
                    },
                    "name", "datatype", "shape",
                ),
                minItems=1,
            ),
            "outputs": _list(
                _object(
                    {
                        "name": TEXT,
                        "parameters": _object(
                            {
                                "binary_data": {**BOOLEAN, "description": "send this output as raw bytes"},
                                "classification": {
                                    "type": "integer",
                                    "minimum": 1,
                                    "description": 'send so many of the highest values as "value:index:label"',
                                },
                            },
                            required=[],
                        ),
                    },
                    "name",
                ),
                description="outputs wanted; every one if left out",
            ),
            "parameters": _object(
                {"binary_data_output": {**BOOLEAN, "description": "send every output as raw bytes"}}, required=[]
            ),
        },
        "inputs",
    ),
    "InferAnswer": _object(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": TEXT,
            "outputs": _list(
                _object(
                    {
                        "name": TEXT,
                        "datatype": DATATYPE,
                        "shape": SENT_SHAPE,
                        "data": DATA,
                        "parameters": _object({"binary_data_size": SIZE}),
                    },
                    "name", "datatype", "shape",
                )
            ),
        },
        "model_name", "model_version", "outputs",
    ),
    "Index": _list(
        _object({"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT}, "name", "state")
    ),
    "IndexFilter": _object({"ready": {**BOOLEAN, "description": "list only what can answer"}}, required=[]),
    "Change": _object(
        {"parameters": _object({"version": {**TEXT, "description": "one version; all if left out"}}, required=[])},
        required=[],
    ),
    "PredictV1": {
        **_object(
            {
                "signature_name": {"enum": [protocol.SIGNATURE, ""]},
                "instances": _list({}, minItems=1, description="rows; each an object by input name if there are several"),
                "inputs": {"description": "columns; an object by input name if there are several"},
            },
            required=[],
        ),
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictV1Answer": _object({"predictions": _list({}), "outputs": {}}, required=[]),
    "ModelsV1": _object({"models": _list(TEXT)}),
    "StatusV1": _object(
        {
            "name": TEXT,
            "ready": BOOLEAN,
            "model_version_status": _list(
                _object(
                    {
                        "version": TEXT,
                        "state": {"enum": ["AVAILABLE", "END"]},
                        "status": _object({"error_code": TEXT, "error_message": TEXT}),
                    }
                )
            ),
        }
    ),
    "MetadataV1": _object({"model_spec": ANYTHING, "metadata": ANYTHING}),
    "Rows": {
        "oneOf": [{"type": "object"}, _list({"type": "object"}, minItems=1)],
        "description": "one row as an object by column or input name, or a list of rows",
    },
    "Prediction": _object(
        {
            "label": TEXT,
            "probability": NUMBER,
            "top": _list(_object({"label": TEXT, "probability": NUMBER})),
            "set": _list(TEXT, description="labels that hold the truth as often as the model was exported to promise"),
            "value": NUMBER,
            "low": NUMBER,
            "high": NUMBER,
            "target": TEXT,
            "shares": _list(
                _object({"label": TEXT, "share": NUMBER, "colour": TEXT}),
                description="of a segmentation: how much of the picture each label covers, largest first",
            ),
            "mask": {**TEXT, "description": "data URL of a PNG whose pixels are the indices of the labels"},
            "runs": _list(_list(COUNT), description="the mask as [index of the label, length], row by row"),
            "height": COUNT,
            "width": COUNT,
            "boxes": _list(
                _object({"label": TEXT, "score": NUMBER, "box": _list(NUMBER), "colour": TEXT}),
                description="of a detection: left, top, right, bottom in pixels of a picture of this height and width",
            ),
            "embedding": {
                "anyOf": [_list(NUMBER), TEXT],
                "description": "unit vector; as base64 the same in little-endian float32",
            },
            "length": COUNT,
        },
        required=[],
    ),
    "Predictions": _object(
        {"model": TEXT, "version": TEXT, "predictions": _list(_ref("Prediction")), "notes": _list(TEXT)}
    ),
    "Verdict": _object(
        {
            "model": TEXT,
            "version": TEXT,
            "similarity": SIMILARITY,
            "threshold": {"type": ["number", "null"]},
            "same": {"type": ["boolean", "null"], "description": "whether the similarity is above the threshold"},
            "notes": _list(TEXT),
        }
    ),
    "Matches": _object(
        {
            "model": TEXT,
            "version": TEXT,
            "threshold": {"type": ["number", "null"]},
            "matches": _list(
                _list(_object({"name": TEXT, "similarity": SIMILARITY, "same": {"type": ["boolean", "null"]}})),
                description="of each row, the most similar first",
            ),
            "notes": _list(TEXT),
        }
    ),
    "Enrolled": _object(
        {"model": TEXT, "version": TEXT, "name": TEXT, "embeddings": COUNT, "added": COUNT, "notes": _list(TEXT)}
    ),
    "Names": _object(
        {"model": TEXT, "version": TEXT, "names": _list(_object({"name": TEXT, "embeddings": COUNT}))}
    ),
    "Explanation": _object({"model": TEXT, "version": TEXT, "notes": _list(TEXT)}),
    "Job": _object(
        {
            "id": TEXT,
            "kind": TEXT,
            "model": TEXT,
            "version": TEXT,
            "state": TEXT,
            "rows": COUNT,
            "done": COUNT,
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "predictions": _list(_ref("Prediction")),
            "explanations": _list(ANYTHING),
        },
        "id", "kind", "model", "version", "state", "rows", "done",
    ),
    "Traffic": {"type": "object", "description": "rules, counts and tests of a model"},
    "Health": _object({"ready": BOOLEAN, "models": COUNT, "refused": COUNT}),
}  # fmt: skip

ROWS = {
    JSON: _ref("Rows"),
    "text/csv": {**TEXT, "description": "a header line with the columns' names, then one line per row"},
    "text/plain": TEXT,
    "image/png": IMAGE,
    "image/jpeg": {**IMAGE, "contentMediaType": "image/jpeg"},
    "multipart/form-data": _object({"file": _list(IMAGE)}),
}
PACKED = {"description": "the same JSON, and behind it the raw little-endian bytes of its binary tensors"}
TOP = ("top", {"type": "integer", "minimum": 1, "default": 5}, "labels to give, most probable first")
FORM = (
    "form",
    {"enum": [*masks.FORMS, *boxes.FORMS, *embeddings.FORMS]},
    "how a segmentation's mask comes: png, a data URL and the usual form; runs, run lengths; none, the shares alone; which "
    "boxes of a detection come: sure, the usual form, or all; how an embedding comes: numbers, the usual form, or base64",
)
NEAREST = ("top", {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}, "identities to give of each row")
VERSION = ("version", TEXT, "a version of the model; left out, the server chooses")
LABEL = ("label", TEXT, "class to explain; left out, the predicted one")
METHOD = (
    "method",
    {**TEXT, "default": "auto"},
    "way to explain: exact, permutation, kernel, partition, lime, occlusion or rise, and cam for a bundle with "
    "an activation map, at almost no cost; auto takes the one that suits the model",
)
QUALITY = (
    "quality",
    {"type": "boolean", "default": True},
    "measure how far it can be trusted too, in about as much time again",
)
THEME = ("theme", {"enum": ["light", "dark"], "default": "light"}, "page that the picture's colours are for")
WIDTH = (
    "width",
    {"type": "number", "minimum": 4, "maximum": 20, "default": 8.4},
    "of the picture in inches; letters keep their size, so that a narrow one can be read on a phone",
)
LIMIT = (
    "limit",
    {"type": "integer", "minimum": 1, "maximum": admin.MOST_EVENTS, "default": 100},
    "events, newest first",
)
KIND = ("kind", {"enum": ["predict", "explain"], "default": "predict"}, "what to do with each row")

# (what may be sent, what is answered, query parameters) by operation; paths as with no version in them
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple]] = {
    "GET /v2": ({}, {JSON: _ref("Server")}, ()),
    "GET /v2/health/live": ({}, {JSON: _ref("Live")}, ()),
    "GET /v2/health/ready": ({}, {JSON: _ref("Ready")}, ()),
    "GET /v2/models/{model}": ({}, {JSON: _ref("ModelMetadata")}, ()),
    "GET /v2/models/{model}/config": ({}, {JSON: _ref("ModelConfiguration")}, ()),
    "GET /v2/models/{model}/ready": ({}, {JSON: _ref("ModelReady")}, ()),
    "POST /v2/models/{model}/infer": (
        {JSON: _ref("InferRequest"), BINARY: PACKED},
        {JSON: _ref("InferAnswer"), BINARY: PACKED},
        (),
    ),
    "POST /v2/repository/index": ({JSON: _ref("IndexFilter")}, {JSON: _ref("Index")}, ()),
    "POST /v2/repository/models/{model}/load": ({JSON: _ref("Change")}, {JSON: ANYTHING}, ()),
    "POST /v2/repository/models/{model}/unload": ({JSON: _ref("Change")}, {JSON: ANYTHING}, ()),
    "GET /v1/models": ({}, {JSON: _ref("ModelsV1")}, ()),
    "GET /v1/models/{model}": ({}, {JSON: _ref("StatusV1")}, ()),
    "GET /v1/models/{model}/metadata": ({}, {JSON: _ref("MetadataV1")}, ()),
    "POST /v1/models/{model}:predict": ({JSON: _ref("PredictV1")}, {JSON: _ref("PredictV1Answer")}, ()),
    "GET /": ({}, {"text/html": TEXT, JSON: _object({"status": TEXT})}, ()),
    "GET /docs": ({}, {"text/html": TEXT}, ()),
    "GET /openapi.json": ({}, {JSON: ANYTHING}, ()),
    "GET /healthz": ({}, {JSON: _ref("Health")}, ()),
    "GET /metrics": ({}, {"text/plain": TEXT}, ()),
    "GET /models": ({}, {JSON: _list(ANYTHING)}, ()),
    "GET /models/{model}/examples": ({}, {JSON: _list(ANYTHING)}, (VERSION,)),
    "GET /models/{model}/live": ({}, {JSON: ANYTHING}, (VERSION,)),
    "POST /predict/{model}": (
        ROWS,
        {JSON: _ref("Predictions"), "text/csv": TEXT, "image/png": IMAGE},
        (TOP, FORM, VERSION),
    ),
    "POST /explain/{model}": (ROWS, {JSON: _ref("Explanation")}, (METHOD, LABEL, QUALITY, THEME, WIDTH, VERSION)),
    "POST /verify/{model}": (ROWS, {JSON: _ref("Verdict")}, (VERSION,)),
    "POST /search/{model}": (ROWS, {JSON: _ref("Matches")}, (NEAREST, VERSION)),
    "GET /admin/gallery/{model}": ({}, {JSON: _ref("Names")}, (VERSION,)),
    "PUT /admin/gallery/{model}/{name}": (ROWS, {JSON: _ref("Enrolled")}, (VERSION,)),
    "DELETE /admin/gallery/{model}/{name}": ({}, {}, (VERSION,)),
    "POST /jobs/{model}": (ROWS, {JSON: _ref("Job")}, (KIND, TOP, FORM, METHOD, LABEL, QUALITY, VERSION)),
    "GET /jobs": ({}, {JSON: _list(_ref("Job"))}, ()),
    "GET /jobs/{job}": ({}, {JSON: _ref("Job"), "text/csv": TEXT}, ()),
    "DELETE /jobs/{job}": ({}, {}, ()),
    "GET /admin/traffic": ({}, {JSON: _list(_ref("Traffic"))}, ()),
    "GET /admin/history": ({}, {JSON: _list(ANYTHING)}, (LIMIT,)),
    "GET /admin/history/{model}": ({}, {JSON: _list(ANYTHING)}, (LIMIT,)),
    "POST /feedback/{model}": ({JSON: {"anyOf": [_ref("Outcome"), _list(_ref("Outcome"))]}}, {JSON: {}}, ()),
}
CHANGES: dict[str, type | None] = {
    "PUT /admin/traffic/{model}/pin": admin.Pin,
    "PUT /admin/traffic/{model}/canary": admin.NewCanary,
    "PUT /admin/traffic/{model}/shadow": admin.NewShadow,
    "PUT /admin/traffic/{model}/experiment": admin.NewExperiment,
    "PUT /admin/traffic/{model}/watch": None,
    "POST /admin/traffic/{model}/promote": admin.Which,
    "POST /admin/traffic/{model}/rollback": admin.Which,
}
BODIES |= {
    name: ({JSON: ANYTHING if body is None else _ref(body.__name__)}, {JSON: _ref("Traffic")}, ())
    for name, body in CHANGES.items()
}
SCHEMAS |= msgspec.json.schema_components(
    [*dict.fromkeys(body for body in CHANGES.values() if body is not None), admin.Outcome],
    ref_template="#/components/schemas/{name}",
)[1]
NO_BODY_NEEDED = re.compile(r"/v2/repository/.*|/admin/.*/(promote|rollback)")
STATUS = {"POST /jobs/{model}": "202", "DELETE /jobs/{job}": "204", "DELETE /admin/gallery/{model}/{name}": "204"}
NOT_READY = ("/ready", "/health/ready")  # answered with 503 and the same body while the answer is no


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
        one = {"anyOf": [_ref(name) for name in rows]}
        schemas["Rows"] = {**SCHEMAS["Rows"], "oneOf": [one, _list(one, minItems=1)]}
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
    standard = path.startswith(("/v2", "/v1"))
    error = {"description": "refused", "content": {JSON: {"schema": _ref("ErrorText" if standard else "Error")}}}
    status = STATUS.get(name, "200")
    content = {media: {"schema": schema} for media, schema in answered.items()}
    responses: dict[str, Any] = {status: {"description": "answered", **({"content": content} if content else {})}}
    if path.endswith(NOT_READY):
        either = {"anyOf": [*answered.values(), _ref("ErrorText")]}
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
        given = {model: each[name] for model, each in examples.items() if name in each}
        for place, part in ((bodies, 0), (content, 1)):
            shown = {_safe(model): {"summary": model, "value": pair[part]} for model, pair in given.items()}
            if shown:
                place[JSON]["examples"] = shown
    if BINARY in sent:
        told["parameters"].append(_header_length())
    if path.endswith(("/infer", ":predict")) or path.startswith("/predict/"):
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
        if not port.columns:
            about = f"{port.dtype} of shape {port.sizes}" + (f", {port.unit}" if port.unit else "")
            properties[port.name] = {**(TEXT if port.dtype == "BYTES" else _list({})), "description": about}
        for column in port.columns:
            kinds = ["string", "null"] if port.dtype == "BYTES" else ["number", "null"]
            properties[column] = {"type": kinds}
            if column in manifest.choices:
                properties[column]["examples"] = list(manifest.choices[column])
    return _object(properties, required=[], additionalProperties=False, description=f"one row for {manifest.name}")


def _examples(model: ModelLike) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What may be sent to a model and what it answers, by operation: its first golden row."""
    manifest = model.manifest
    try:
        golden = golden_rows(model.bundle)
    except (OSError, ValueError, EOFError, BadZipFile):  # the files of a served version may have left the store
        return
    inputs = {port.name: golden[f"input/{port.name}"][:1] for port in manifest.inputs if golden}
    if not golden or sum(array.size for array in inputs.values()) > MOST_VALUES:
        return
    outputs = {port.name: golden[f"output/{port.name}"][:1] for port in manifest.outputs}
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
    try:
        row = codec.to_row(inputs, 0, manifest)
        predictions = codec.answers(outputs, manifest, top=5)
    except (KeyError, ValueError, TypeError):  # a kind of model that has tensors only
        return
    told = {"model": model.name, "version": model.version, "predictions": predictions, "notes": []}
    yield "POST /predict/{model}", (row, told)


def _jsonable(array: np.ndarray) -> list[Any]:
    """Lists with null for what JSON has no number for."""
    return msgspec.json.decode(msgspec.json.encode(array.tolist()))
