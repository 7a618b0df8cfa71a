"""Files fetched once, checked against their published hash, and kept in a folder of the user.

Where nobody publishes a hash, that of the first file is written beside it, and another one is refused from then on.
"""

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
        checksum: `algorithm:hexadecimal digest`, as published by the source; "" where it publishes none, and the first
            file that is found or fetched decides what it is from then on.
        place: folder of the cache to keep it in.

    Returns:
        Path of a file with that checksum.

    Raises:
        OSError: it could not be downloaded; the message says where to put it by hand.
        ValueError: the file in the cache, or the one that came, has another checksum.
    """
    path = place / url.rsplit("/", 1)[-1]
    record = path.with_name(f"{path.name}.sha256")
    recorded = f"sha256:{record.read_text(encoding='utf-8').split()[0]}" if not checksum and record.exists() else ""
    expected = checksum or recorded
    if not path.exists():
        _download(url, expected, path)
    elif expected and _digest(path, expected) != expected:
        what, remedy = ("published file", "it, and it") if checksum else ("file that was first fetched", "both, and it")
        where = f" in {record}" if recorded else ""
        raise ValueError(
            f"{path} is not the {what}: its checksum is {_digest(path, expected)}, expected {expected}{where}; "
            f"delete {remedy} is fetched again from {url}"
        )
    if not expected:
        found = _digest(path, "sha256").partition(":")[2]
        record.write_text(f"{found}  {path.name}\n", encoding="utf-8")
        log.warning(
            "nobody publishes a checksum of %s; its own is kept in %s, and another file is refused from now on",
            url,
            record,
        )
    return path


def _digest(path: Path, checksum: str) -> str:
    algorithm = checksum.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _download(url: str, checksum: str, path: Path) -> None:
    """Stream into a temporary file beside its place; only a file with the right checksum, if one is known, gets the name."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"only http and https addresses are fetched, got {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s into %s", url, path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            shutil.copyfileobj(answer, file, 1 << 20)
        if checksum and (found := _digest(part, checksum)) != checksum:
            raise ValueError(
                f"{url} sent a file with checksum {found}, expected {checksum}; try again, or another network"
            )
        part.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise OSError(
            f"cannot download {url}: {getattr(error, 'reason', error)}; without a network, "
            f"put the file {path.name}{f' ({checksum})' * bool(checksum)} into the folder {path.parent} by hand"
        ) from error
    finally:
        part.unlink(missing_ok=True)
