"""Routes for people and scripts: the page, simple predictions, explanations and jobs.

What bodies mean is in `codec`.
"""

import math
import threading
import time
from typing import Any

import msgspec
from flask import Flask, Response, g, has_request_context, request

from serve import codec, continuations, masks, pictures, texts
from serve.codec import Batch, Inputs
from serve.errors import RequestError, did_you_mean, shown
from serve.explainer import Explainer
from serve.gallery import Gallery
from serve.heads import LONGEST_WAIT, deadline_of
from serve.identities import identity_routes
from serve.jobs import KINDS, Job, Jobs
from serve.live import Live
from serve.manifest import Manifest, Port
from serve.monitor import Monitor
from serve.runtime import ModelLike
from serve.standard import cached, reply
from serve.store import Shelf
from serve.tensors import decode_json
from serve.writing import MOST

JSON, CSV, TEXT, PNG = "application/json", "text/csv", "text/plain", "image/png"
BYTES = "application/octet-stream"
MOST_EXPLAINED = 500  # rows of one job of explanations, each of which takes seconds


def people_routes(
    app: Flask,
    store: Shelf,
    monitor: Monitor,
    explainer: Explainer,
    jobs: Jobs,
    live: Live,
    *,
    guard: Any = None,
    traffic: Any = None,
    drift: Any = None,
    gallery: Gallery | None = None,
    max_pixels: int,
) -> None:
    """Add `/`, `/models`, `/predict`, `/explain` and `/jobs`, and the routes of `serve.identities`.

    Args:
        app: the app.
        store: whose models answer.
        monitor: counts predicted rows.
        explainer: answers `/explain`.
        jobs: keeps and works off what comes to `/jobs`.
        live: figures of the last minute.
        guard: says who may explain in a job, and which models a list shows; everybody and all if None.
        traffic: tells which version is pinned, canary or shadow, if given.
        drift: tells how far inputs are from those of training, if given.
        gallery: keeps identities; in memory if None.
        max_pixels: most pixels an image file may declare.
    """
    bodies = _Bodies(max_pixels)
    _page_routes(app, store, live, guard=guard, traffic=traffic, drift=drift)
    _answer_routes(app, store, monitor, explainer, jobs, bodies)
    _job_routes(app, store, monitor, explainer, jobs, bodies, guard)
    identity_routes(
        app,
        gallery or Gallery(),
        monitor,
        model_of=lambda name: _model(store, name),
        read=bodies.read,
        deadline=_deadline,
    )


def _page_routes(app: Flask, store: Shelf, live: Live, *, guard: Any, traffic: Any, drift: Any) -> None:
    @app.get("/")
    def page() -> Response:
        """The page to try the models; a client that takes no HTML, such as KServe's, is told that the server lives."""
        if "html" in request.headers.get("Accept", "text/html"):
            response = app.send_static_file("index.html")
        else:
            response = reply({"status": "alive"})
        response.headers["Vary"] = "Accept"
        return response

    @app.get("/models")
    def models() -> Response:
        """What the page needs to know of every model."""
        seen = guard.models_of(request.headers) if guard is not None else None
        index = store.index()
        names = dict.fromkeys(entry["name"] for entry in index if seen is None or entry["name"] in seen)
        return cached(reply([_described(store, name, index) for name in names]))

    @app.get("/models/<model>/examples")
    def examples(model: str) -> Response:
        """Up to 16 rows that the model was exported with, in the form `/predict` takes."""
        found = _model(store, model)
        given = found.examples
        count = len(next(iter(given.values()), ()))
        return cached(reply([codec.to_row(given, row, found.manifest) for row in range(count)]))

    @app.get("/models/<model>/live")
    def figures(model: str) -> Response:
        """Figures of the last minute, rules between versions, and drift."""
        found = _model(store, model)
        served, recent = store.models.get(found.name, {}), live.describe(found.name)
        rules = traffic.describe(found.name) if traffic is not None else {}
        versions = [
            {
                "version": version,
                "roles": _roles(version, rules) or (["latest"] if version == next(reversed(served)) else []),
                "share": rules.get("shares", {}).get(version),
                **recent.get(version, dict.fromkeys(("requests", "errors", "p50_ms", "p99_ms"))),
                "waiting": getattr(served[version], "waiting", 0),
                "drift": _drifted(drift, found.name, version),
            }
            for version in reversed(served)
        ]
        return reply({"model": found.name, "versions": versions, "history": live.history(found.name)})


def _roles(version: str, rules: dict[str, Any]) -> list[str]:
    """What the rules between versions make of one, in words."""
    canary, shadow, trial = (rules.get(rule) or {} for rule in ("canary", "shadow", "experiment"))
    roles = {
        "pinned": rules.get("pin") == version,
        "default": rules.get("default") == version and rules.get("pin") is None,
        "canary": canary.get("version") == version,
        "shadow": shadow.get("version") == version,
        "experiment": version in (trial.get("control"), trial.get("treatment")),
        "held back": version in rules.get("held", {}),
    }
    found = [role for role, true in roles.items() if true]
    rate = shadow.get("comparison", {}).get("disagreement_rate")
    if "shadow" in found and rate is not None:
        found.append(f"disagrees on {rate:.1%}")
    return found


def _drifted(drift: Any, name: str, version: str) -> dict[str, Any] | None:
    if drift is None:
        return None
    told = drift.describe(name, version)
    return {"state": told["state"], "verdict": told["verdict"]}


def _answer_routes(
    app: Flask, store: Shelf, monitor: Monitor, explainer: Explainer, jobs: Jobs, bodies: "_Bodies"
) -> None:
    waiting = _Count()  # interactive requests under way
    jobs.busy = lambda: waiting.now > 0 or _queued(store)

    @app.before_request
    def _arrived() -> None:
        if request.method == "POST" and not request.path.startswith(("/jobs/", "/explain/")):
            g.waits = True
            waiting.add(1)

    @app.teardown_request
    def _gone(_: BaseException | None) -> None:
        if "waits" in g:
            waiting.add(-1)

    @app.post("/predict/<model>")
    def predict(model: str) -> Response:
        """Answer image files, JSON rows, a CSV file or a text with labels, values, texts or pictures."""
        found = _model(store, model)
        top, form, beams, table = _whole("top", 5), _form(found), _beams(found), _wants_csv()
        picture = request.accept_mimetypes.best_match([JSON, CSV, PNG]) == PNG
        batch = bodies.read(found)
        if batch.count > found.max_batch:
            message = (
                f"a request must hold 1 … {found.max_batch} rows, got {batch.count}; send more to /jobs/{found.name}"
            )
            raise RequestError("bad_batch", message, 413)
        inputs, notes = batch.take()
        notes = [*_unknown(), *notes]
        if found.manifest.generation:
            predictions, told = _written(found, inputs, _parameters())
            _counted(monitor, store, found, predictions)
            if picture and batch.count == 1 and continuations.paints(found.manifest):
                return Response(pictures.file_of(predictions[0]["image"]), mimetype=PNG)
            if table:
                return _csv(codec.answers_csv(predictions, found.manifest))
            told = [*notes, *told]
            return reply({"model": found.name, "version": found.version, "predictions": predictions, "notes": told})
        answered = found.predict(inputs, codec.needed(found.manifest), deadline=_deadline())
        if picture and batch.count == 1 and found.manifest.task == "segmentation":
            monitor.rows(found.name, found.version, 1)
            return Response(masks.png(answered["mask"][0], found.manifest.labels), mimetype=PNG)
        read = codec.read(found.bundle.folder, found.manifest, inputs)
        predictions = codec.answers(
            answered, found.manifest, top=top, precision=found.precision, form=form, read=read, beams=beams
        )
        monitor.rows(found.name, found.version, len(predictions))
        if table:
            return _csv(codec.answers_csv(predictions, found.manifest))
        return reply({"model": found.name, "version": found.version, "predictions": predictions, "notes": notes})

    @app.post("/explain/<model>")
    def explain(model: str) -> Response:
        """What the answer to one row came from, how far that can be trusted, and a picture of it."""
        found = _model(store, model)
        _check_explained(found)
        options = _explanation(found)
        batch = bodies.read(found)
        pair = found.manifest.task == "embedding"
        if batch.count != (2 if pair else 1):
            message = f"an explanation is for one row; send one, or several to /jobs/{found.name}?kind=explain"
            if pair:
                message = f"what is explained of {found.name!r} is how alike two rows are; send two, got {batch.count}"
            raise RequestError("bad_batch", message)
        inputs, notes = batch.take()
        inputs = found.check(inputs)
        if pair:
            (rows,) = inputs.values()
            inputs = {"left": rows[:1], "right": rows[1:]}
        told = explainer.explain(found.bundle, inputs, precision=found.precision, picture=_picture(), **options)
        return reply({"model": found.name, "version": found.version, **told, "notes": notes})


def _job_routes(
    app: Flask, store: Shelf, monitor: Monitor, explainer: Explainer, jobs: Jobs, bodies: "_Bodies", guard: Any
) -> None:
    @app.post("/jobs/<model>")
    def submit(model: str) -> Response:
        """Take many rows, answer them in the background."""
        kind = request.args.get("kind", "predict")
        if kind not in KINDS:
            raise RequestError("bad_parameter", f"kind must be one of {', '.join(KINDS)}, got {kind[:40]!r}")
        if kind == "explain" and guard is not None:
            guard.admit(request.headers, "explain", request.remote_addr or "", model)
        found = _model(store, model)
        top, form, beams = _whole("top", 5), _form(found), _beams(found)
        if kind == "explain":
            _check_explained(found)
        options = _explanation(found)
        parameters = _parameters() if found.manifest.generation else {}
        batch = bodies.read(found)
        if kind == "explain" and found.manifest.task == "embedding":
            message = f"a job explains single rows, and of {found.name!r} pairs are explained; send them to /explain"
            raise RequestError("bad_parameter", message)
        if kind == "explain" and batch.count > MOST_EXPLAINED:
            message = f"a job explains at most {MOST_EXPLAINED} rows, got {batch.count}; split it"
            raise RequestError("too_many_rows", message, 413)

        def predict(inputs: Inputs) -> list[dict[str, Any]]:
            model = store.get(found.name, found.version)
            if model.manifest.generation:
                rows, told = _written(model, inputs, parameters)
                _counted(monitor, store, model, rows)
                return [{**row, "notes": told} for row in rows] if told else rows
            answered = model.predict(inputs, codec.needed(model.manifest))
            read = codec.read(model.bundle.folder, model.manifest, inputs)
            predictions = codec.answers(
                answered, model.manifest, top=top, precision=model.precision, form=form, read=read, beams=beams
            )
            monitor.rows(model.name, model.version, len(predictions))
            return predictions

        def explain(inputs: Inputs) -> list[dict[str, Any]]:
            model = store.get(found.name, found.version)
            checked = model.check(inputs)
            return [explainer.explain(model.bundle, checked, precision=model.precision, **options)]

        free = any(size < 0 for port in found.manifest.inputs for size in port.shape[1:])
        job = jobs.submit(
            kind,
            batch,
            predict if kind == "predict" else explain,
            model=found.name,
            version=found.version,
            # rows of free sizes do not fit in one array; a few texts at a time show how a job gets on
            most=1 if kind == "explain" or free else MOST if found.manifest.generation else found.max_batch,
            owner=g.get("identity", ""),
            client=g.get("identity", "") or f"peer:{request.remote_addr}",
        )
        response = reply({**jobs.describe(job), "notes": job.notes}, 202)
        response.headers["Location"] = f"/jobs/{job.id}"
        return response

    @app.get("/jobs")
    def own() -> Response:
        """Jobs of the key that asks."""
        identity = g.get("identity", "")
        if not identity:
            message = "jobs are listed for a key only; without one, keep the id that POST /jobs/<model> answered"
            raise RequestError("forbidden", message, 403)
        return reply([jobs.describe(job) for job in jobs.owned(identity)])

    @app.get("/jobs/<job>")
    def status(job: str) -> Response:
        """Progress of a job, and its results as far as they go once it has ended."""
        found = _job(job)
        if found.state == "done" and found.kind == "predict" and _wants_csv():
            return _csv(codec.answers_csv(jobs.results(found), store.get(found.model, found.version).manifest))
        told = jobs.describe(found)
        if found.ended is None:
            response = reply(told)
            response.headers["Retry-After"] = "1"
            return response
        return reply({**told, "predictions" if found.kind == "predict" else "explanations": jobs.results(found)})

    @app.delete("/jobs/<job>")
    def delete(job: str) -> Response:
        """Stop a job and forget its results."""
        jobs.delete(job, g.get("identity", ""))
        return Response(status=204)

    def _job(id: str) -> Job:
        return jobs.get(id, g.get("identity", ""))


class _Count:
    """A number that several threads raise and lower."""

    def __init__(self) -> None:
        self.now = 0
        self._turn = threading.Lock()

    def add(self, change: int) -> None:
        with self._turn:
            self.now += change


def _queued(store: Shelf) -> bool:
    """Whether requests wait for a worker; without workers none does."""
    return any(getattr(model, "waiting", 0) for versions in store.models.values() for model in versions.values())


def _told(batch: Batch, model: ModelLike) -> Batch:
    """The same rows, of which the notes say where a text is cut."""
    if "tokenizer" not in model.manifest.preprocess or model.manifest.generation:
        return batch

    def read(first: int, stop: int) -> tuple[Inputs, list[str]]:
        inputs, told = batch.take(stop - first)
        return inputs, [*told, *texts.notes_of(model.bundle, inputs, first)]

    return Batch(batch.count, batch.bytes, read)


class _Bodies:
    """Reads the body of a request by its media type."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def read(self, model: ModelLike) -> Batch:
        """Rows of the request under way.

        Raises:
            RequestError: a media type that is not read, or that does not fit the model.
        """
        return _told(self._read(model), model)

    def _read(self, model: ModelLike) -> Batch:
        kind = request.mimetype
        if kind == "multipart/form-data":
            files = [file for _, file in request.files.items(multi=True)]
            if model.manifest.kind == "audio":
                return codec.audio_batch([file.read() for file in files], model.manifest)
            if len(files) == 1 and model.manifest.kind != "image":
                name = (files[0].filename or "").lower()
                by_name = CSV if name.endswith((".csv", ".tsv")) else TEXT if name.endswith(".txt") else JSON
                known = files[0].mimetype in (CSV, TEXT, JSON) or files[0].mimetype.startswith("image/")
                return self._one(files[0].mimetype if known else by_name, files[0].read(), model)
            return codec.image_batch([file.read() for file in files], model.manifest, max_pixels=self._max_pixels)
        return self._one(kind, request.get_data(), model)

    def _one(self, kind: str, body: bytes, model: ModelLike) -> Batch:
        if not kind:  # clients that are given bytes often say nothing of them
            kind = JSON if body.lstrip()[:1] in (b"", b"{", b"[", b'"') else BYTES
        if kind.startswith("audio/") or (kind == BYTES and model.manifest.kind == "audio"):
            return codec.audio_batch([body], model.manifest)
        if kind.startswith("image/") or kind == BYTES:
            return codec.image_batch([body], model.manifest, max_pixels=self._max_pixels)
        if kind == CSV:
            return codec.csv_batch(body, model.manifest)
        if kind == TEXT:
            return codec.text_batch(body, model.manifest)
        if kind == JSON or kind.endswith("+json"):
            return codec.json_batch(decode_json(body), model.manifest, len(body))
        message = (
            f"bodies of type {kind[:60]!r} are not read; say what it is with the header Content-Type: application/json, "
            "text/csv, text/plain, image/png, image/jpeg, audio/wav or audio/flac, or send a multipart form"
        )
        raise RequestError("unsupported_media", message, 415)


def _model(store: Shelf, name: str) -> ModelLike:
    key, draw = request.headers.get("X-Traffic-Key"), request.method == "POST"
    g.model = store.get(name, request.args.get("version"), key=key, draw=draw)
    return g.model


def _whole(parameter: str, default: int) -> int:
    text = request.args.get(parameter, str(default))
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise RequestError("bad_parameter", f"{parameter} must be a whole number above 0, got {text[:40]!r}")
    return int(text[:9])


def _unknown() -> list[str]:
    """Notes on what the URL asks that nothing is done with."""
    known = ("version", "top", "form", *continuations.PARAMETERS, continuations.STOP)
    return [
        f"no parameter is called {name!r:.60}, so it was left out.{did_you_mean(name, known)}"
        for name in request.args
        if name not in known
    ]


def _form(model: ModelLike) -> str:
    """How an answer that is neither label nor value shall come, as the request asks."""
    form, known = request.args.get("form", ""), codec.forms(model.manifest)
    if form and form not in known:
        what = f"one of {', '.join(known)}" if known else f"left out for {model.name!r}"
        raise RequestError("bad_parameter", f"form must be {what}, got {form[:40]!r}")
    return form


def _beams(model: ModelLike) -> int:
    """How many answers are followed at once, as the request asks; texts that are written have it among `_parameters`."""
    given = _parameters().get("beams")
    if given is None or model.manifest.generation:
        return 1
    if model.manifest.task not in codec.SEARCHED:
        message = f"beams must be left out for {model.name!r}, whose answers are not searched for, got {shown(given)}"
        raise RequestError("bad_parameter", message)
    return int(continuations.PARAMETERS["beams"].read("beams", given))


def _explanation(model: ModelLike) -> dict[str, Any]:
    """Method, index of the label to explain, and whether to judge the explanation, as the request asks."""
    label, labels = request.args.get("label"), model.manifest.labels
    if label is not None and label not in labels:
        raise RequestError("bad_parameter", f"label must be one of {', '.join(labels[:20])}, got {label[:60]!r}")
    quality = request.args.get("quality", "true")
    if quality not in ("true", "false"):
        raise RequestError("bad_parameter", f"quality must be true or false, got {quality[:40]!r}")
    return {
        "method": request.args.get("method", "auto"),
        "label": None if label is None else labels.index(label),
        "quality": quality == "true",
    }


def _picture() -> dict[str, Any]:
    """Colours and width of the picture, as the request asks."""
    theme, width = request.args.get("theme", "light"), request.args.get("width", "8.4")
    if theme not in ("light", "dark"):
        raise RequestError("bad_parameter", f"theme must be light or dark, got {theme[:40]!r}")
    try:
        inches = float(width[:40])
    except ValueError:
        inches = 0.0
    if not 4 <= inches <= 20:
        raise RequestError("bad_parameter", f"width must be 4 … 20 inches, got {width[:40]!r}")
    return {"dark": theme == "dark", "width": inches}


def _deadline() -> float | None:
    """When the client wants its answer, in `time.monotonic()` seconds; None if it does not say."""
    return deadline_of(request.headers.get("X-Request-Timeout"))


def _parameters() -> dict[str, Any]:
    """How texts shall be continued, as the request's URL asks; what it says is checked where it is read."""
    given: dict[str, Any] = {}
    for name, parameter in continuations.PARAMETERS.items():
        text = request.args.get(name)
        if text is not None:
            try:
                value = int(text[:40]) if parameter.whole else float(text[:40])
                given[name] = value if math.isfinite(value) else text
            except ValueError:
                given[name] = text
    stops = request.args.getlist(continuations.STOP)
    return given | ({continuations.STOP: stops} if stops else {})


def _written(model: ModelLike, inputs: Inputs, parameters: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """What a model writes behind texts, or paints of them, a row for each, and notes."""
    (rows,) = inputs.values()
    body = continuations.pack([str(text) for text in rows.ravel()], parameters)
    deadline = _deadline() if has_request_context() else time.monotonic() + LONGEST_WAIT
    return continuations.unpack(b"".join(part.body for part in model.follow("rows", body, deadline)))


def _counted(monitor: Monitor, store: Shelf, model: ModelLike, rows: list[dict[str, Any]]) -> None:
    """Count texts that were written in this process; those of a fleet are counted there."""
    monitor.rows(model.name, model.version, len(rows))
    if not hasattr(store, "observers"):
        monitor.written(model.name, model.version, sum(row["tokens"] for row in rows), None)


def _check_explained(model: ModelLike) -> None:
    """Refuse to explain a text, or a picture.

    Raises:
        RequestError: the model writes texts, or paints.
    """
    if model.manifest.generation:
        made = (
            "paints pictures, of which each code"
            if continuations.paints(model.manifest)
            else "writes texts, of which each token"
        )
        message = f"{model.name!r} {made} has reasons of its own; explanations are for a label or a value"
        raise RequestError("cannot_explain", message)


def _wants_csv() -> bool:
    return request.accept_mimetypes.best_match([JSON, CSV], JSON) == CSV


def _csv(text: str) -> Response:
    return Response(text, content_type="text/csv; charset=utf-8; header=present")


def _described(store: Shelf, name: str, index: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page needs to know of a model."""
    served = store.models.get(name, {})
    versions = [
        {**entry, **_scores(served.get(entry["version"]))} for entry in reversed(index) if entry["name"] == name
    ]
    if not served:
        return {"name": name, "versions": versions}
    model = next(reversed(served.values()))
    manifest = model.manifest
    return {
        "name": name,
        "version": manifest.version,
        "versions": versions,
        "architecture": manifest.architecture,
        "task": manifest.task,
        "kind": manifest.kind,
        "labels": manifest.labels,
        "metric": manifest.metric,
        "writes": _written_kind(manifest),
        "length": manifest.generation.get("length", 0),
        "inputs": [msgspec.to_builtins(port) for port in manifest.inputs],
        "choices": manifest.choices,
        "maps": any(port.name == "activation_map" and _spreads(port) for port in manifest.outputs),
        "max_batch": model.max_batch,
        "training": {key: manifest.training.get("data", {}).get(key) for key in ("name", "source", "generated")},
    }


def _written_kind(manifest: Manifest) -> str:
    """What a model makes of a text, as the page asks: a "picture", an "answer" or a "continuation"; "" for nothing."""
    if continuations.paints(manifest):
        return "picture"
    return "answer" if continuations.writes(manifest) else "continuation" if manifest.generation else ""


def _spreads(port: Port) -> bool:
    """Whether a map has more than one place, so that it can show where a model looked."""
    places = zip(port.shape, port.axes, strict=False)
    return any(size != 1 for size, axis in places if axis in ("height", "width", "time"))


def _scores(model: ModelLike | None) -> dict[str, Any]:
    if model is None:
        return {}
    stored = model.manifest.precisions[model.precision]
    return {"precision": model.precision, "score": stored.score, "bytes": stored.bytes}
