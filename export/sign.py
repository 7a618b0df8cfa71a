"""Signatures of bundles: Ed25519 over `SHA256SUMS`, which lists the hash of every file. Needs `cryptography`.

A signature says that the holder of a private key vouches for exactly these bytes under exactly this name and version,
since the manifest holds both. Who may be believed is up to the server: `zoo serve --trust`.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from export import ExportError
from serve.manifest import SIGNATURE, SIGNED, SUMS, key_id, read

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSWORD = "ZOO_KEY_PASSWORD"  # environment variable with the password of an encrypted private key


def make_key(path: str | Path) -> tuple[Path, Path]:
    """Write a new key pair; encrypted if the environment variable ZOO_KEY_PASSWORD is set.

    Args:
        path: where the pair goes, without an ending.

    Returns:
        The private key `<path>.key` (PEM, readable by its owner only), which stays with the signer, and the public key
        `<path>.pub` (PEM), which servers get.

    Raises:
        ExportError: one of the files exists, or `cryptography` is not installed.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = Path(f"{path}.key"), Path(f"{path}.pub")
    for file in (private, public):
        if file.exists():
            raise ExportError(f"{file} exists, and keys are never overwritten; choose another name")
    password = os.environ.get(PASSWORD, "").encode()
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )
    open_part = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as locked:
        locked.write(secret)
    public.write_bytes(open_part)
    return private, public


def load_key(path: str | Path) -> "Ed25519PrivateKey":
    """A private key from a PEM file; its password, if it has one, is read from ZOO_KEY_PASSWORD.

    Raises:
        FileNotFoundError: no such file.
        ExportError: no Ed25519 private key, a wrong password, or `cryptography` is not installed.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password = os.environ.get(PASSWORD, "").encode()
    content = Path(path).read_bytes()
    try:
        encrypted = b"ENCRYPTED" in content.split(b"\n", 1)[0]
        key = load_pem_private_key(content, password if encrypted and password else None)
    except TypeError:
        raise ExportError(f"{path} is encrypted; put its password into the environment variable {PASSWORD}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ExportError(
            f"{path} is no private key in PEM, or its password is another one; make a pair with: zoo sign --new-key NAME"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ExportError(f"{path} holds a key of another kind than Ed25519; make one with: zoo sign --new-key NAME")
    return key


def sign(folder: str | Path, key: "str | Path | Ed25519PrivateKey") -> str:
    """Sign a bundle, after its hashes were verified; signatures by other keys stay beside this one.

    Args:
        folder: the bundle.
        key: a private key, or its file.

    Returns:
        Short id of the key, which stands in the signature.

    Raises:
        BundleError: the bundle is not whole.
        ExportError: the key cannot be used, or the folder cannot be written to.
    """
    folder = Path(folder)
    if isinstance(key, str | Path):
        key = load_key(key)
    read(folder)
    sums = (folder / SUMS).read_bytes()
    raw = key.public_key().public_bytes_raw()
    line = f"ed25519 {key_id(raw)} {key.sign(SIGNED + sums).hex()}\n"
    place = folder / SIGNATURE
    others = place.read_text(encoding="ascii").splitlines(keepends=True) if place.exists() else []
    kept = [each for each in others if each.split()[1:2] != [key_id(raw)]]
    try:
        with tempfile.NamedTemporaryFile("w", dir=folder.parent, prefix=".sign-", delete=False) as draft:
            draft.write("".join([*kept, line]))
            draft.flush()
            os.fsync(draft.fileno())
        Path(draft.name).chmod(0o644)
        Path(draft.name).replace(place)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ExportError(f"cannot write {str(place)!r}: {reason}; sign it where it can be written to") from error
    return key_id(raw)


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ExportError(
            "signing needs cryptography, which is not installed; run: pip install cryptography"
        ) from error
