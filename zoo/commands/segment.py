"""`zoo segment`: masks of pictures of any size."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.shared import quiet_backend

_NOTED = 100 << 20  # bytes of a picture decoded whole from which it is said


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(segment)


def segment(
    what: Annotated[Path, typer.Argument(help="Run folder or bundle of a segmentation.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures of any size, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")] = Path("masks"),
    tile: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="Side of a tile, or H,W; only a run takes another than its own."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Pixels that neighbouring tiles share; half a tile if not given.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Tiles per call of the model.")] = 8,
    precision: Annotated[str | None, typer.Option(help="Form of a bundle, such as int8.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="Draw each mask over its picture.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON alone.")] = False,
) -> None:
    """Write the mask of each picture as a PNG of label indices, and the mask laid over the picture.

    A picture larger than the model's input is cut into overlapping tiles and put together again. TIFF of strips or tiles
    and .npy are read in parts, so they may be larger than memory; other formats are decoded whole.

    Example: zoo segment runs/unet-cells slide.tif --overlap 64
    """
    size = _size(tile)
    files = _files(pictures)
    quiet_backend()
    import json

    from zoo.evaluate.mask_files import write
    from zoo.evaluate.tiles import segmenter

    if not what.is_dir():
        raise ValueError(f"{what} is neither a run folder nor a bundle, such as runs/unet-shapes or store/scenes/1")
    model = segmenter(what, precision, size)
    found = []
    for file in files:
        with _Bar(file.name, as_json) as bar:
            done = write(model, file, out, overlap=overlap, batch=batch, overlay=overlay, progress=bar)
        found.append(done)
        if not as_json:
            covered = ", ".join(f"{label} {share:.1%}" for label, share in done.shares.items() if share)
            typer.echo(
                f"{done.mask}  {done.width:,} x {done.height:,} pixels, {done.tiles:,} tiles, {done.seconds:.1f} s: {covered}"
            )
            if done.whole > _NOTED:
                typer.echo(
                    f"{file.name} was decoded whole, {done.whole / 1e6:,.0f} MB; a TIFF of strips or tiles, or a .npy, is "
                    "read in parts"
                )
    if as_json:
        rows = [
            {
                "picture": str(done.picture), "height": done.height, "width": done.width, "mask": str(done.mask),
                "overlay": str(done.overlay) if done.overlay else None, "shares": done.shares, "tiles": done.tiles,
                "seconds": round(done.seconds, 3),
            }
            for done in found
        ]  # fmt: skip
        typer.echo(json.dumps({"labels": list(model.labels), "pictures": rows}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{len(found)} mask{'s' * (len(found) != 1)} in {out}: each pixel is the index of its label")


def _size(tile: str | None) -> tuple[int, int] | None:
    """`256` or `256,512` as height and width."""
    if tile is None:
        return None
    try:
        numbers = tuple(map(int, tile.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"--tile takes a number of pixels such as 256, or height,width such as 256,512, got {tile!r}")
    return numbers[0], numbers[-1]


def _files(pictures: list[Path]) -> list[Path]:
    """The pictures, with those in folders; no two may write the same mask."""
    from zoo.data.images import visible

    found: list[Path] = []
    for path in pictures:
        if path.is_dir():
            inside = [file for file in visible(path) if file.is_file() and _is_picture(file)]
            if not inside:
                raise ValueError(f"the folder {path} holds no pictures; name pictures, or a folder of them")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"there is no picture {path}; name a file or a folder")
    stems: dict[str, Path] = {}
    for file in found:
        other = stems.setdefault(file.stem, file)
        if other is not file:
            raise ValueError(
                f"{other} and {file} would both write {file.stem}.mask.png; rename one, or give each an --out of its own"
            )
    return found


def _is_picture(file: Path) -> bool:
    from PIL import Image

    return file.suffix.lower() == ".npy" or file.suffix.lower() in Image.registered_extensions()


class _Bar:
    """A progress bar of the tiles of one picture on standard error, where that is a terminal."""

    def __init__(self, name: str, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        hidden = quiet or not console.is_terminal
        self.shown = Progress(*columns, console=console, transient=True, disable=hidden)
        self.task = self.shown.add_task(f"{name}, tiles", total=None)

    def __enter__(self) -> "_Bar":
        self.shown.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shown.stop()

    def __call__(self, done: int, count: int) -> None:
        self.shown.update(self.task, completed=done, total=count)
