"""Texts that a model writes: by a bundle's decoder, or by one that is made of a run for the moment."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.generation import Piece, Running


def generate(model: Any, text: str, *, precision: str | None = None, threads: int = 0, **ask: Any) -> str:
    """What a language model puts behind a text, or a model of texts to texts answers to it.

    Args:
        model: bundle or run, the path of one, or what `opened` gave, which is quicker for many texts.
        text: that begins, or that is answered.
        precision: form of a bundle, such as "w8"; its default if None.
        threads: processor threads; 0 for all.
        ask: `most` tokens (64), `temperature` (0 takes the likeliest, else one is drawn), `top_k`, `top_p`, `beams`, `stop`
            (texts before which it ends) and `seed`; see `serve.sampling.Ask`.

    Returns:
        The new characters alone.

    Raises:
        ValueError: the model writes no texts, the text has nothing to go on from, or an argument is out of range.
        TypeError: there is no such argument, or the text is none.
    """
    running = opened(model, precision, threads)
    return "".join(piece.text for piece in pieces(running, text, **ask))


def pieces(running: "Running", text: str, **ask: Any) -> "Iterator[Piece]":
    """The same as it comes, from what `opened` gave: the new characters, and why it ended."""
    from serve.sampling import Ask

    there = [field.name for field in dataclasses.fields(Ask)]
    for name in ask:
        if name not in there:
            raise TypeError(f"there is no argument {name!r}; there are {', '.join(there)}")
    if isinstance(ask.get("stop"), str):
        ask["stop"] = (ask["stop"],)
    if not isinstance(text, str):
        raise TypeError(f"the text must be a str, got {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text is no Unicode, got {text!r:.60}; read it as UTF-8") from None
    own, done = running.add(text, Ask(**ask)), ""
    try:
        while not done:
            for number, piece in running.step():
                if number == own:
                    done = piece.done
                    yield piece
    finally:  # whoever has read enough leaves nothing behind
        running.drop(own)


def opened(model: Any, precision: str | None = None, threads: int = 0, *, paints: bool = False) -> Any:
    """Something that continues texts, or paints pictures of them, of a bundle or run; the arguments are those of `generate`.

    Raises:
        ValueError: the model writes no texts, or paints no pictures where that is asked.
    """
    from serve.generation import Running
    from serve.manifest import MANIFEST, Bundle, read
    from serve.painting import Painting

    kind = Painting if paints else Running
    if isinstance(model, Running) and isinstance(model, Painting) == paints:
        return model
    if isinstance(model, str | Path):
        if (Path(model) / MANIFEST).exists():
            model = read(model)
        else:
            from zoo.training import load

            model = load(model)
    if isinstance(model, Bundle):
        _check(model.manifest.name, "picture" in model.manifest.generation, paints)
        return kind(model.folder, model.manifest, precision, threads)
    if not hasattr(model, "signature"):
        what = "paints pictures of" if paints else "writes"
        raise ValueError(f"a bundle or a run {what} texts, which have a tokenizer; got a {type(model).__name__}")
    if precision not in (None, "fp32"):
        raise ValueError(f"a run has its weights in fp32 only, got precision={precision!r}; export it first")
    _check(model.model.name, model.signature.task == "text-to-image", paints)
    from export import continuing

    with tempfile.TemporaryDirectory() as place:  # the session has read the files when this ends
        manifest = continuing.alone(model.model, model.signature, Path(place))
        return kind(Path(place), manifest, "fp32", threads)


def _check(name: str, able: bool, paints: bool) -> None:
    if able and not paints:
        raise ValueError(f"{name!r} paints pictures of texts, and writes none; ask it with zoo.paint, or `zoo paint`")
    if paints and not able:
        raise ValueError(
            f"pictures are painted by a model such as 'dalle', got {name!r}; train one, such as with `zoo train dalle_nano`"
        )
