"""Credentials, once checked: what a key or a JSON Web Token allows, and the files that say so."""

import contextlib
import hashlib
import logging
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from serve.keys import SCOPES, KeyFile, Rate, rate, seconds

log = logging.getLogger("serve")

VERIFIED = 4096  # JSON Web Tokens whose signature need not be checked again
LEEWAY = 30  # seconds that the clocks of issuer and server may differ
Content = TypeVar("Content")
_FAILED = {  # errors of PyJWT
    "ExpiredSignatureError": "has expired",
    "ImmatureSignatureError": "is not valid yet",
    "MissingRequiredClaimError": "lacks one of exp, aud and iss",
    "InvalidAudienceError": "is made for another audience",
    "InvalidIssuerError": "comes from another issuer",
    "InvalidSignatureError": "is signed by another key",
    "InvalidAlgorithmError": "is signed in a way that is not taken here",
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a credential allows, ready for the hot path.

    Attributes:
        identity: for logs, such as "key:1a2b3c4d" or "jwt:somebody".
        digest: SHA-256 of an API key's token; empty for a JSON Web Token.
        scopes: among `SCOPES`.
        models: names it may ask, None for all.
        starts, ends: seconds since 1970 between which it is good.
        rate: its limit, None for no limit.
        revoked: whether it was ended.
    """

    identity: str
    digest: bytes
    scopes: frozenset[str]
    models: frozenset[str] | None
    starts: float
    ends: float
    rate: Rate | None
    revoked: bool = False


class Watched(Generic[Content]):
    """A file that is read again when it changes; the last good content stays in force while it cannot be read."""

    def __init__(self, path: Path, load: Callable[[Path], Content]) -> None:
        self.path, self._load = path, load
        self._stamp, self.content = _stamp(path), load(path)
        self._turn = threading.Lock()

    def look(self) -> bool:
        """Read the file if it changed; whether there is new content."""
        if not self._turn.acquire(blocking=False):  # another thread is looking
            return False
        try:
            found = _stamp(self.path)
            if found == self._stamp:
                return False
            self._stamp = found
            self.content = self._load(self.path)
        except (OSError, ValueError) as error:
            log.error("%s cannot be used, so what it said before stays in force: %s", self.path.name, error)
            return False
        else:
            return True
        finally:
            self._turn.release()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def grants(path: Path, standard: Rate | None) -> dict[str, Grant]:
    """Grants by key id."""
    return {
        key.id: Grant(
            identity=f"key:{key.id}",
            digest=bytes.fromhex(key.sha256),
            scopes=frozenset(key.scopes),
            models=frozenset(key.models) or None,
            starts=0.0,
            ends=seconds(key.expires) or math.inf,
            rate=rate(key.rate, key.burst) or standard,
            revoked=key.revoked is not None,
        )
        for key in KeyFile(path).read()
    }


class Tokens:
    """JSON Web Tokens of one issuer. A key admits one algorithm, so that a token cannot choose another, or none."""

    def __init__(
        self, path: Path, audience: str | None, issuer: str | None, scopes: str, standard: Rate | None
    ) -> None:
        if not audience:
            raise ValueError(
                "a JWT key needs the audience that tokens are made for, else those for other services would pass; "
                "give --jwt-audience"
            )
        self._audience, self._issuer, self._scopes, self._rate = audience, issuer, scopes, standard
        self._file = Watched(path, _verifiers)
        self._verified: dict[bytes, Grant] = {}

    def look(self) -> None:
        if self._file.look():
            self._verified = {}

    def grant(self, token: str) -> tuple[Grant | None, str]:
        """What a token allows, or None and why it is not good."""
        digest = hashlib.sha256(token.encode()).digest()
        verified = self._verified
        known = verified.get(digest)
        if known is not None:
            return known, ""
        import jwt

        try:
            head = jwt.get_unverified_header(token)
            algorithm, key = self._verifier(head.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "aud"]},
            )
            grant = self._read(claims)
        except jwt.PyJWTError as error:
            return None, f"its token {_FAILED.get(type(error).__name__, 'cannot be read')}"
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError):
            return None, "its token cannot be read"
        if len(verified) >= VERIFIED:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # another thread was first
                del verified[next(iter(verified))]
        verified[digest] = grant
        return grant, ""

    def _verifier(self, name: Any) -> tuple[str, Any]:
        known = self._file.content
        if None in known:  # a file with one key, whatever its token calls it
            return known[None]
        if name is None and len(known) == 1:
            return next(iter(known.values()))
        return known[name]

    def _read(self, claims: dict[str, Any]) -> Grant:
        listed = claims.get(self._scopes, ())
        scopes = frozenset(listed.split() if isinstance(listed, str) else listed) & frozenset(SCOPES)
        models = claims.get("models")
        if models is not None and not (isinstance(models, list) and all(isinstance(name, str) for name in models)):
            raise ValueError("models")
        subject = re.sub(r"[^A-Za-z0-9@._:|+-]", "?", str(claims.get("sub", "")))[:64]
        return Grant(
            identity=f"jwt:{subject}",
            digest=b"",
            scopes=scopes,
            models=None if models is None else frozenset(models),
            starts=float(claims.get("nbf", 0)) - LEEWAY,
            ends=float(claims["exp"]) + LEEWAY,
            rate=self._rate,
        )


def _verifiers(path: Path) -> dict[str | None, tuple[str, Any]]:
    """Algorithm and key by key id; None stands for the one key of a file that names none."""
    try:
        import jwt
    except ImportError as error:
        raise ImportError(
            "JWT verification needs PyJWT, which is not installed; run: pip install 'pyjwt[crypto]'"
        ) from error
    content = path.read_bytes().strip()
    if content.startswith(b"{"):
        try:
            found = jwt.PyJWKSet.from_json(content.decode()).keys
        except (jwt.PyJWTError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not a JSON Web Key Set: {error}") from error
        named = {key.key_id: _matched(path, key.key) for key in found}
        if len(named) < len(found):
            raise ValueError(f"{path} has keys without an id of their own ('kid'); name each of them")
        return named
    if content.startswith(b"-----"):
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        if b"PRIVATE" in content.split(b"\n", 1)[0]:
            raise ValueError(f"{path} is a private key, which a server must not hold; give its public key")
        try:
            return {None: _matched(path, load_pem_public_key(content))}
        except ValueError as error:
            raise ValueError(f"{path} is not a PEM public key: {error}") from error
    return {None: _matched(path, content)}


def _matched(path: Path, key: Any) -> tuple[str, Any]:
    """The one algorithm for a key, by its kind."""
    if isinstance(key, bytes):
        if len(key) < 32:
            raise ValueError(f"{path} holds a shared secret of {len(key)} bytes; HS256 needs at least 32")
        return "HS256", key
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey) and key.key_size >= 2048:
        return "RS256", key
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA", key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256", key
    raise ValueError(
        f"{path} holds a {type(key).__name__} that is not taken; use RSA of at least 2048 bits, P-256, Ed25519 or a secret"
    )
