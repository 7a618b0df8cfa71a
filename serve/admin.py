"""Routes of the operator: traffic between versions, its history, the workers; and the outcomes that clients report.

The guard lets nobody without a key of scope "admin" at what lies under /admin. What rules mean is in `traffic`.
"""

import time
from typing import Any, TypeVar

import msgspec
from flask import Flask, Response, g, request

from serve.errors import RequestError
from serve.guard import Guard
from serve.standard import reply
from serve.tensors import decode_json
from serve.traffic import Traffic

MOST_OUTCOMES = 1000  # in one report
MOST_EVENTS = 1000  # of history in one answer


class Pin(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a pin."""

    version: str


class NewCanary(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a canary; `force` accepts a version with other inputs."""

    version: str
    weight: float
    force: bool = False


class NewShadow(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a shadow."""

    version: str
    share: float = 1.0


class NewExperiment(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an experiment; `force` accepts versions with different inputs."""

    control: str
    treatment: str
    share: float = 0.5
    metric: str = "outcome"
    better: str = "higher"
    alpha: float = 0.05
    force: bool = False


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a promotion or a rollback."""

    version: str | None = None
    reason: str = ""


class Outcome(msgspec.Struct, forbid_unknown_fields=True):
    """How one answer turned out: its version, and the key or the id of its request."""

    outcome: float
    version: str | None = None
    key: str | None = None
    request: str | None = None


Body = TypeVar("Body")


def admin_routes(app: Flask, store: Any, traffic: Traffic, guard: Guard | None = None) -> None:
    """Add the routes under /admin and `/feedback`, and let the traffic decide for the store and learn from its answers.

    A `Fleet` tells its observers of every answer; a store without observers is watched here, by the app's own inference
    routes.

    Args:
        app: the app, protected by a guard.
        store: whose versions the rules are about.
        traffic: the rules.
        guard: says which models a list shows; all if None.
    """
    store.traffic = traffic
    app.extensions["traffic"] = traffic
    observers = getattr(store, "observers", None)
    if observers is None:
        _watch_answers(app, traffic)
    elif traffic.observe not in observers:
        observers.append(traffic.observe)
    _reading_routes(app, store, traffic, guard)
    _changing_routes(app, store, traffic)
    _feedback_route(app, store, traffic)


def _watch_answers(app: Flask, traffic: Traffic) -> None:
    """Count the app's own inferences."""

    @app.after_request
    def _count(response: Response) -> Response:
        model, rule = getattr(g, "model", None), request.url_rule
        if model is None or rule is None or request.method != "POST":
            return response
        if rule.rule.endswith(("/infer", ":predict")) or rule.rule.startswith("/predict/"):
            asked = (request.view_args or {}).get("version") or request.args.get("version")
            traffic.record(
                model.name,
                model.version,
                status=response.status_code,
                seconds=time.perf_counter() - g.start,
                rows=0,
                chosen=asked is None,
            )
        return response


def _reading_routes(app: Flask, store: Any, traffic: Traffic, guard: Guard | None) -> None:
    @app.get("/admin/traffic")
    def all_traffic() -> Response:
        """Rules, counts and tests of every model."""
        seen = guard.models_of(request.headers) if guard is not None else None
        names = sorted({*store.models, *traffic.models()})
        return reply([_told(store, traffic, name) for name in names if seen is None or name in seen])

    @app.get("/admin/traffic/<model>")
    def model_traffic(model: str) -> Response:
        """Rules, counts and tests of one model."""
        return reply(_of(store, traffic, model))

    @app.get("/admin/history")
    @app.get("/admin/history/<model>")
    def history(model: str | None = None) -> Response:
        """What happened to the traffic, newest first."""
        text = request.args.get("limit", "100")
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_EVENTS):
            raise RequestError("bad_parameter", f"limit must be a whole number in 1 … {MOST_EVENTS}, got {text[:40]!r}")
        seen = guard.models_of(request.headers) if guard is not None else None
        events = traffic.history(model, MOST_EVENTS)
        return reply([event for event in events if seen is None or event["model"] in seen][: int(text)])

    @app.get("/admin/workers")
    def workers() -> Response:
        """Workers, queues, memory and cache; whether rules are being saved."""
        state = store.state() if hasattr(store, "state") else {"workers": []}
        return reply({**state, "ready": store.ready, "draining": store.draining, "state": traffic.saved()})


def _changing_routes(app: Flask, store: Any, traffic: Traffic) -> None:
    @app.put("/admin/traffic/<model>/pin")
    def pin(model: str) -> Response:
        """Make a version the default, whatever arrives."""
        traffic.pin(_changed(store, traffic, model), _body(Pin).version)
        return _done(store, traffic, model)

    @app.put("/admin/traffic/<model>/canary")
    def canary(model: str) -> Response:
        """Send a share of the requests to a version, which is taken back if it does badly."""
        name, body = _changed(store, traffic, model), _body(NewCanary)
        if not body.force:
            _compare_inputs(store, name, body.version, traffic.describe(name)["default"])
        traffic.canary(name, body.version, body.weight)
        return _done(store, traffic, model)

    @app.put("/admin/traffic/<model>/shadow")
    def shadow(model: str) -> Response:
        """Copy a share of the requests to a version, and compare its answers."""
        body = _body(NewShadow)
        traffic.shadow(_changed(store, traffic, model), body.version, body.share)
        return _done(store, traffic, model)

    @app.put("/admin/traffic/<model>/experiment")
    def experiment(model: str) -> Response:
        """Draw between two versions and test which does better."""
        name, body = _changed(store, traffic, model), _body(NewExperiment)
        if not body.force:
            _compare_inputs(store, name, body.treatment, body.control)
        traffic.experiment(
            name,
            body.control,
            body.treatment,
            share=body.share,
            metric=body.metric,
            better=body.better,
            alpha=body.alpha,
        )
        return _done(store, traffic, model)

    @app.put("/admin/traffic/<model>/watch")
    def watch(model: str) -> Response:
        """Change when a new version is taken back by itself."""
        changes = decode_json(request.get_data())
        if not isinstance(changes, dict):
            raise RequestError("bad_request", 'the body must be an object of settings, such as {"slower": 3}', 400)
        traffic.watch(_changed(store, traffic, model), **changes)
        return _done(store, traffic, model)

    @app.post("/admin/traffic/<model>/promote")
    def promote(model: str) -> Response:
        """Make the canary, or a version of the experiment, the default."""
        traffic.promote(_changed(store, traffic, model), _body(Which, Which()).version)
        return _done(store, traffic, model)

    @app.post("/admin/traffic/<model>/rollback")
    def rollback(model: str) -> Response:
        """Take back the canary, the treatment or the default version, and hold it."""
        traffic.rollback(_changed(store, traffic, model), _body(Which, Which()).reason[:500])
        return _done(store, traffic, model)

    @app.delete("/admin/traffic/<model>")
    @app.delete("/admin/traffic/<model>/<rule>")
    def clear(model: str, rule: str = "all") -> Response:
        """End one rule, or all of them."""
        traffic.clear(_changed(store, traffic, model), rule)
        return _done(store, traffic, model)

    @app.delete("/admin/traffic/<model>/held/<version>")
    def release(model: str, version: str) -> Response:
        """Let a version that was taken back answer again."""
        traffic.release(_changed(store, traffic, model), version)
        return _done(store, traffic, model)


def _feedback_route(app: Flask, store: Any, traffic: Traffic) -> None:
    decoder = msgspec.json.Decoder(list[Outcome] | Outcome)

    @app.post("/feedback/<model>")
    def feedback(model: str) -> Response:
        """Report how answers turned out, for the experiment that runs."""
        name = _known(store, traffic, model)
        sent = decode_json(request.get_data(), decoder)
        if isinstance(sent, Outcome):
            return reply(_reported(traffic, name, sent))
        if len(sent) > MOST_OUTCOMES:
            raise RequestError(
                "too_many", f"a report holds at most {MOST_OUTCOMES} outcomes, got {len(sent)}; split it", 413
            )
        told = []
        for outcome in sent:
            try:
                told.append(_reported(traffic, name, outcome))
            except RequestError as error:
                told.append({"counted": False, "reason": error.message})
        return reply(told)


def _reported(traffic: Traffic, name: str, sent: Outcome) -> dict[str, Any]:
    return traffic.outcome(name, sent.outcome, version=sent.version, key=sent.key, request=sent.request)


def _body(kind: type[Body], default: Body | None = None) -> Body:
    data = request.get_data()
    return default if default is not None and not data else decode_json(data, msgspec.json.Decoder(kind))


def _known(store: Any, traffic: Traffic, model: str) -> str:
    """A model's name, once the traffic knows its versions of this moment.

    Raises:
        RequestError: 404, no such model; 503, it is refused.
    """
    versions = store.models.get(model)
    if not versions:
        store.get(model)  # says why there is none
    traffic.see(model, list(versions or ()))
    return model


def _changed(store: Any, traffic: Traffic, model: str) -> str:
    """A model's name, if its rules may be changed here.

    Raises:
        RequestError: as `_known` does; 409, a file rules it.
    """
    name = _known(store, traffic, model)
    traffic.check_free(name)
    return name


def _of(store: Any, traffic: Traffic, model: str) -> dict[str, Any]:
    if model not in traffic.models():  # rules of a model that has left the store can still be looked at
        _known(store, traffic, model)
    return _told(store, traffic, model)


def _told(store: Any, traffic: Traffic, model: str) -> dict[str, Any]:
    traffic.see(model, list(store.models.get(model, ())))
    return traffic.describe(model)


def _done(store: Any, traffic: Traffic, model: str) -> Response:
    """The new rules, once they are on disk, or `state` says why they are not."""
    traffic.flush()
    return reply(_told(store, traffic, model))


def _compare_inputs(store: Any, name: str, version: str, other: str) -> None:
    """Refuse to send one client's requests to versions that read different inputs."""
    served = store.models.get(name, {})
    if version not in served or other not in served:
        return  # the traffic says so
    mine, theirs = (
        {port.name: (port.dtype, tuple(port.shape)) for port in served[each].manifest.inputs}
        for each in (version, other)
    )
    if mine != theirs:
        message = (
            f"version {version!r} of {name!r} reads {mine}, version {other!r} reads {theirs}; requests for one would be refused by "
            'the other. Pin one of them instead, or send "force": true'
        )
        raise RequestError("inputs_differ", message, 409)
