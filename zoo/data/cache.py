"""Files fetched once, checked against their published hash, and kept in a folder of the user."""

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

log = logging.getLogger("zoo.data")

TIMEOUT = 30  # seconds without a byte


def folder(*parts: str) -> Path:
    """The cache folder, `ZOO_CACHE` or `~/.cache/zoo`, with the parts below it; it need not exist."""
    return Path(os.environ.get("ZOO_CACHE") or "~/.cache/zoo").expanduser().joinpath(*parts)


def fetch(url: str, checksum: str, place: Path) -> Path:
    """The file behind an address, downloaded if the cache has it not.

    Args:
        url: http or https address; its last part names the file.
        checksum: `algorithm:hexadecimal digest`, as published by the source.
        place: folder of the cache to keep it in.

    Returns:
        Path of a file with that checksum.

    Raises:
        OSError: it could not be downloaded; the message says where to put it by hand.
        ValueError: the file in the cache, or the one that came, has another checksum.
    """
    path = place / url.rsplit("/", 1)[-1]
    if not path.exists():
        _download(url, checksum, path)
    elif _digest(path, checksum) != checksum:
        raise ValueError(
            f"{path} is not the published file: its checksum is {_digest(path, checksum)}, expected {checksum}; "
            f"delete it, and it is fetched again from {url}"
        )
    return path


def _digest(path: Path, checksum: str) -> str:
    algorithm = checksum.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _download(url: str, checksum: str, path: Path) -> None:
    """Stream into a temporary file beside its place; only a file with the right checksum gets the name."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"only http and https addresses are fetched, got {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s into %s", url, path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            shutil.copyfileobj(answer, file, 1 << 20)
        found = _digest(part, checksum)
        if found != checksum:
            raise ValueError(
                f"{url} sent a file with checksum {found}, expected {checksum}; try again, or another network"
            )
        part.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise OSError(
            f"cannot download {url}: {getattr(error, 'reason', error)}; without a network, "
            f"put the file {path.name} ({checksum}) into the folder {path.parent} by hand"
        ) from error
    finally:
        part.unlink(missing_ok=True)
