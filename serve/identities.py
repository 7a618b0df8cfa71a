"""Routes of models that embed: whether two rows are one identity, and who of the enrolled a row is.

Enrolling, listing and removing lie under /admin, since they are about people. Embeddings alone are kept, see `gallery`.
"""

from collections.abc import Callable

import numpy as np
from flask import Flask, Response, request

from serve import embeddings
from serve.codec import Batch
from serve.errors import RequestError
from serve.gallery import Gallery, Of, checked_name
from serve.monitor import Monitor
from serve.runtime import ModelLike
from serve.standard import reply

MOST_TOP = 100  # identities in an answer


def identity_routes(
    app: Flask,
    gallery: Gallery,
    monitor: Monitor,
    *,
    model_of: Callable[[str], ModelLike],
    read: Callable[[ModelLike], Batch],
    deadline: Callable[[], float | None],
) -> None:
    """Add `/verify`, `/search` and `/admin/gallery`.

    Args:
        app: the app.
        gallery: keeps the identities.
        monitor: counts rows.
        model_of: the model that answers the request under way, by name.
        read: rows of the request under way.
        deadline: when its answer is wanted.
    """

    def embedded(found: ModelLike, least: int, most: int, what: str) -> tuple[np.ndarray, list[str]]:
        """Embeddings of the rows that were sent, and notes on these."""
        batch = read(found)
        if not least <= batch.count <= most:
            wanted = str(least) if least == most else f"{least} … {most}"
            raise RequestError("bad_batch", f"{what} takes {wanted} rows, got {batch.count}")
        inputs, notes = batch.take()
        answered = found.predict(inputs, list(embeddings.NEEDED), deadline=deadline())
        monitor.rows(found.name, found.version, batch.count)
        return answered[embeddings.NEEDED[0]], notes

    @app.post("/verify/<model>")
    def verify(model: str) -> Response:
        """How similar two rows are, and whether they are one identity.

        Send two files, or two rows. The threshold is the model's own, chosen on pairs of its validation split.
        """
        found = _embedding(model_of(model))
        vectors, notes = embedded(found, 2, 2, "a pair")
        told = embeddings.compared(vectors, found.manifest, found.precision)
        return reply({"model": found.name, "version": found.version, **told, "notes": notes})

    @app.post("/search/<model>")
    def search(model: str) -> Response:
        """Which enrolled identities each row is nearest to.

        `same` says whether the similarity is above the model's threshold; below it, the nearest is somebody else.
        """
        found = _embedding(model_of(model))
        top = _top()
        vectors, notes = embedded(found, 1, found.max_batch, "a search")
        limit = embeddings.threshold(found.manifest, found.precision)
        matches = [
            [
                {"name": name, "similarity": value, "same": None if limit is None else value > limit}
                for name, value in row
            ]
            for row in gallery.search(_of(found), vectors, top)
        ]
        if not any(matches):
            notes = [*notes, f"nobody is enrolled for version {found.version} of {found.name!r}"]
        told = {"model": found.name, "version": found.version, "threshold": limit, "matches": matches, "notes": notes}
        return reply(told)

    @app.get("/admin/gallery/<model>")
    def enrolled(model: str) -> Response:
        """Who is enrolled for a version of a model, and with how many embeddings."""
        found = _embedding(model_of(model))
        names = [{"name": name, "embeddings": count} for name, count in gallery.names(_of(found)).items()]
        return reply({"model": found.name, "version": found.version, "names": names})

    @app.put("/admin/gallery/<model>/<name>")
    def enrol(model: str, name: str) -> Response:
        """Add the embeddings of some rows to a name; the rows themselves are not kept.

        They count for one version of the model, which `version` names, and have to be sent again for the next.
        """
        found = _embedding(model_of(model))
        name = checked_name(name)
        vectors, notes = embedded(found, 1, found.max_batch, "an enrolment")
        count = gallery.enrol(_of(found), name, vectors)
        told = {"name": name, "embeddings": count, "added": len(vectors), "notes": notes}
        return reply({"model": found.name, "version": found.version, **told})

    @app.delete("/admin/gallery/<model>/<name>")
    def remove(model: str, name: str) -> Response:
        """Forget a name and its embeddings for a version of a model."""
        found = _embedding(model_of(model))
        if not gallery.remove(_of(found), name.strip()):
            message = f"nobody is enrolled as {name[:40]!r} for version {found.version} of {found.name!r}"
            raise RequestError("unknown_name", message, 404)
        return Response(status=204)


def _embedding(found: ModelLike) -> ModelLike:
    """The model, if it embeds."""
    if found.manifest.task != "embedding":
        message = f"{found.name!r} gives no embeddings, its task is {found.manifest.task}; ask /predict/{found.name}"
        raise RequestError("wrong_task", message, 409)
    return found


def _of(found: ModelLike) -> Of:
    return Of(found.name, found.version, found.bundle.digest)


def _top() -> int:
    text = request.args.get("top", "5")
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MOST_TOP):
        raise RequestError("bad_parameter", f"top must be 1 … {MOST_TOP}, got {text[:40]!r}")
    return int(text)
