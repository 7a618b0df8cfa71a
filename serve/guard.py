"""Who may ask for what, and how often; origins and security headers.

`Guard` knows no web framework; `protect` puts it in front of a Flask app.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from serve.credentials import Grant, Tokens, Watched, grants
from serve.errors import RequestError
from serve.keys import SCOPES, TOKEN, Rate, rate

if TYPE_CHECKING:
    from flask import Flask

LONGEST = 8192  # characters of a credential that are looked at
LOOK = 1.0  # seconds between two looks at the key file and the JWT key
ANY = "any"  # what lists of models need: some scope, whichever
BUCKETS = 65_536  # clients whose rate is remembered

# style.css, app.js and pictures come from this server only; an explanation's picture is a data URL, a preview a blob
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
DATA_HEADERS = {"X-Content-Type-Options": "nosniff"}  # all that means something on an answer that no browser shows
ALLOWED_HEADERS = "Authorization, Content-Encoding, Content-Type, Inference-Header-Content-Length, X-Request-Id"
EXPOSED_HEADERS = "Inference-Header-Content-Length, Retry-After, X-Request-Id"
ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::\d{1,5})?")


class Headers(Protocol):
    """Headers of a request by lower-case name, as a dictionary or as a web framework has them."""

    def get(self, name: str, /) -> str | None: ...


class Guard:
    """Decides on every request, from its headers alone; safe to use from several threads.

    Without keys and without a JWT key, everybody may predict and explain, and nobody reaches the admin routes.
    """

    def __init__(
        self,
        *,
        keys: str | Path | None = None,
        jwt_key: str | Path | None = None,
        jwt_audience: str | None = None,
        jwt_issuer: str | None = None,
        jwt_scopes: str = "scope",
        anonymous: Collection[str] | None = None,
        key_rate: Rate | None = None,
        peer_rate: Rate | None = None,
        proxies: int = 0,
        origins: Collection[str] = (),
    ) -> None:
        """Read keys and limits.

        Args:
            keys: file made by `zoo keys`; read again within a second when it changes.
            jwt_key: file with a PEM public key (RSA, P-256 or Ed25519), a JSON Web Key Set, or a shared secret of at
                least 32 bytes (HS256); read again when it changes.
            jwt_audience: the `aud` that a token must be made for; needed with `jwt_key`.
            jwt_issuer: the `iss` a token must come from, any if None.
            jwt_scopes: claim that lists the scopes, as a list or as text with blanks between.
            anonymous: scopes open to clients without a credential. None opens "predict", "explain" and "metrics" where
                there are no keys, and "metrics" alone where there are.
            key_rate: limit of every key and token that has none of its own.
            peer_rate: limit of each client address without a credential; IPv6 addresses count by /64 network.
            proxies: reverse proxies in front, whose `X-Forwarded-For` entries are believed. 0 believes none.
            origins: web origins, such as "https://shop.example", whose pages may call the server.

        Raises:
            FileNotFoundError: no such file.
            ValueError: an option or a file that cannot be used; the message says which.
            ImportError: `jwt_key` without PyJWT being installed.
        """
        self._keys = None if keys is None else Watched(Path(keys), lambda path: grants(path, key_rate))
        self._tokens = (
            None if jwt_key is None else Tokens(Path(jwt_key), jwt_audience, jwt_issuer, jwt_scopes, key_rate)
        )
        self.closed = self._keys is not None or self._tokens is not None
        if anonymous is None:
            anonymous = ("metrics",) if self.closed else ("predict", "explain", "metrics")
        for scope in anonymous:
            if scope not in SCOPES or scope == "admin":
                raise ValueError(
                    f"without a key there may be {', '.join(s for s in SCOPES if s != 'admin')}, got {scope!r}"
                )
        if proxies < 0:
            raise ValueError(f"proxies is a number of reverse proxies, 0 or more, got {proxies}")
        self._anonymous = frozenset(anonymous)
        if self._anonymous & {"predict", "explain"}:
            self._anonymous |= {ANY}
        self._free = self._anonymous if not self.closed and peer_rate is None else frozenset()
        self._peer_rate, self._proxies = peer_rate, proxies
        self._buckets: OrderedDict[str, list[float]] = OrderedDict()  # identity or peer -> [tokens, when]
        self._turn = threading.Lock()
        self._looked = time.monotonic()
        self._origins = frozenset(map(_origin, origins))
        self._headers = {
            (origin, page): {**(PAGE_HEADERS if page else DATA_HEADERS), **self._sharing(origin)}
            for origin in (None, *self._origins)
            for page in (True, False)
        }

    def admit(self, headers: Headers, scope: str, peer: str, model: str = "") -> str:
        """Let a request pass or refuse it.

        Args:
            headers: of the request, by lower-case name.
            scope: what the route needs, among `SCOPES`, or `ANY`.
            peer: address the connection comes from.
            model: name asked for, "" where the route is about no model.

        Returns:
            Who asks, for logs: "key:<id>", "jwt:<subject>", or "" for a client without a credential.

        Raises:
            RequestError: 401, a credential is missing or not good; 403, it does not cover this; 429, too many requests.
        """
        if scope in self._free:
            return ""
        now = time.monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            self._look()
        sent = headers.get("authorization")
        if not self.closed or sent is None:
            return self._anonymously(headers, scope, peer, now)
        grant = self._granted(sent, headers, peer, now)
        if grant.rate is not None:
            self._take(grant.identity, grant.rate, now)
        if scope != ANY and scope not in grant.scopes and scope not in self._anonymous:
            message = (
                f"this credential does not cover {scope!r}; it covers {', '.join(sorted(grant.scopes)) or 'nothing'}"
            )
            raise RequestError("forbidden", message, 403, {"WWW-Authenticate": 'Bearer error="insufficient_scope"'})
        if model and grant.models is not None and model not in grant.models:
            raise _not_for()
        return grant.identity

    def check_model(self, headers: Headers, model: str) -> None:
        """Refuse an admitted request whose body names a model that its credential is not for.

        Raises:
            RequestError: 403, it does.
        """
        models = self.models_of(headers)
        if models is not None and model not in models:
            raise _not_for()

    def models_of(self, headers: Headers) -> frozenset[str] | None:
        """Names that an admitted request may see in lists, None for all."""
        sent = headers.get("authorization")
        if not self.closed or sent is None:
            return None
        return self._granted(sent, headers, "", time.monotonic()).models

    def response_headers(self, origin: str | None, *, page: bool = True) -> dict[str, str]:
        """Headers for an answer; the dictionary is shared and must not be changed.

        Args:
            origin: the request's `Origin`.
            page: whether a browser may show the answer; False leaves out what means nothing for tensors and JSON.
        """
        return self._headers[origin if origin in self._origins else None, page]

    def preflight(self, origin: str | None) -> dict[str, str]:
        """Headers that answer a browser's question whether a page of `origin` may send a request."""
        given = dict(self.response_headers(origin, page=False))
        if origin in self._origins:
            given |= {
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": ALLOWED_HEADERS,
                "Access-Control-Max-Age": "600",
            }
        return given

    def _sharing(self, origin: str | None) -> dict[str, str]:
        if not self._origins:
            return {}
        if origin is None:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        }

    def _look(self) -> None:
        if self._keys is not None:
            self._keys.look()
        if self._tokens is not None:
            self._tokens.look()

    def _anonymously(self, headers: Headers, scope: str, peer: str, now: float) -> str:
        if self._peer_rate is not None:
            self._take(self._address(headers, peer), self._peer_rate, now)
        if scope in self._anonymous:
            return ""
        if not self.closed:
            message = (
                f"{scope} routes are off, because this server has no keys; make one with: zoo keys make NAME "
                f"--scope {scope}, and start the server with --keys keys.json"
            )
            raise RequestError("forbidden", message, 403)
        message = "this needs a credential; send the header Authorization: Bearer <key>"
        raise RequestError("unauthorized", message, 401, {"WWW-Authenticate": 'Bearer realm="zooroad"'})

    def _granted(self, sent: str, headers: Headers, peer: str, now: float) -> Grant:
        """What the credential allows, if it is good."""
        token = sent[7:].strip() if sent[:7].lower() == "bearer " and len(sent) <= LONGEST else ""
        grant, reason = None, "it is not one of this server's"
        form = TOKEN.fullmatch(token)
        if form is not None and self._keys is not None:
            known = self._keys.content.get(form[1])
            if known is not None and hmac.compare_digest(known.digest, hashlib.sha256(token.encode()).digest()):
                grant = known
        elif self._tokens is not None and token.isascii() and token.count(".") == 2:
            grant, reason = self._tokens.grant(token)
        if grant is not None:  # only the owner of a key is told what is wrong with it
            moment = time.time()
            if grant.starts <= moment < grant.ends and not grant.revoked:
                return grant
            reason = (
                "it is revoked"
                if grant.revoked
                else "it has expired"
                if moment >= grant.ends
                else "it is not yet valid"
            )
        if self._peer_rate is not None and peer:
            self._take(self._address(headers, peer), self._peer_rate, now)
        message = f"the credential is not accepted: {reason}; send the header Authorization: Bearer <key>"
        raise RequestError("unauthorized", message, 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'})

    def _take(self, who: str, limit: Rate, now: float) -> None:
        """Take one token from a bucket, or say when there will be one."""
        with self._turn:
            bucket = self._buckets.get(who)
            if bucket is None:
                if len(self._buckets) >= BUCKETS:
                    self._buckets.popitem(last=False)
                self._buckets[who] = [limit.burst - 1.0, now]
                return
            self._buckets.move_to_end(who)
            held = min(float(limit.burst), bucket[0] + max(0.0, now - bucket[1]) * limit.per_second)
            bucket[1] = now
            bucket[0] = held - 1 if held >= 1 else held
        if held < 1:
            wait = max(1, math.ceil((1 - held) / limit.per_second))
            message = (
                f"more than {limit.per_second:g} requests a second; wait {wait} s, or send more rows in one request"
            )
            raise RequestError("too_many_requests", message, 429, {"Retry-After": str(wait)})

    def _address(self, headers: Headers, peer: str) -> str:
        """Name of the bucket of one client address."""
        if self._proxies:
            chain = [part.strip() for part in (headers.get("x-forwarded-for") or "").split(",")]
            if len(chain) >= self._proxies and chain[-self._proxies]:
                peer = chain[-self._proxies][:64]
        if ":" in peer:
            with contextlib.suppress(ValueError):
                address = ipaddress.IPv6Address(peer.partition("%")[0])
                mapped = address.ipv4_mapped
                peer = str(mapped) if mapped else str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
        return f"peer:{peer}"


def _not_for() -> RequestError:
    return RequestError("forbidden", "this credential is not for this model; ask for one that is", 403)


def configured(
    *, anonymous: str | None = None, key_rate: str | None = None, peer_rate: str | None = None, **options: Any
) -> Guard:
    """A guard from options as a command line has them.

    Args:
        anonymous: scopes with commas between, "" for none.
        key_rate: "RATE" or "RATE/BURST", in requests a second and requests at once.
        peer_rate: the same for clients without a key.
        options: the other arguments of `Guard`.

    Raises:
        ValueError: one of them cannot be read, or what `Guard` raises.
    """
    scopes = None if anonymous is None else [scope.strip() for scope in anonymous.split(",") if scope.strip()]
    return Guard(
        anonymous=scopes,
        key_rate=_limit("key-rate", key_rate),
        peer_rate=_limit("peer-rate", peer_rate),
        **options,
    )


def _limit(option: str, text: str | None) -> Rate | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(?:/(\d{1,9}))?", text.strip())
    if found is None:
        raise ValueError(
            f"--{option} takes requests a second and perhaps a burst, such as 100 or 100/200, got {text!r}"
        )
    return rate(float(found[1]), None if found[2] is None else int(found[2]))


def _origin(origin: str) -> str:
    if not ORIGIN.fullmatch(origin):
        raise ValueError(
            f"an origin is scheme, host and port in lower case, such as https://shop.example or http://127.0.0.1:3000, "
            f"got {origin!r}; '*' is not taken, name each origin"
        )
    return origin


ADMITTED = "zooroad.admitted"  # in a WSGI environment: scope, model and identity that the guard was asked for before
NAMED = re.compile(r"/(?:v2/models|v1/models|predict|explain|jobs|feedback|verify|search|admin/gallery)/([^/:]+)")
OPEN = ("/", "/healthz", "/docs", "/openapi.json", "/v2", "/v2/")  # exact paths
OPEN_BELOW = ("/page/", "/v2/health/", "/docs/")


def scope_of(rule: str) -> str | None:
    """Scope that a route such as "/predict/<model>" needs, `ANY` for lists, None where it is open to everybody."""
    if rule in OPEN or rule.startswith(OPEN_BELOW):
        return None
    if rule in ("/models", "/v2/repository/index", "/jobs"):
        return ANY
    if rule == "/metrics":
        return "metrics"
    if rule.startswith(("/admin/", "/v2/repository/models/")) or rule == "/admin":
        return "admin"
    if rule.startswith("/explain/") or rule.endswith("/explain"):
        return "explain"
    return "predict"


def asked(path: str) -> tuple[str | None, str]:
    """Scope and model that a path is about, as far as can be told before its route is looked up.

    What it gets wrong is no way in: `protect` compares it with the route, and asks again where they differ.
    """
    found = NAMED.match(path)
    return scope_of(path), found[1] if found else ""


def protect(app: "Flask", guard: Guard) -> None:
    """Ask the guard before every request of a Flask app, and put its headers on every answer.

    What a route needs is said by `scope_of`; one it does not know needs "predict", so a new route is never open by
    chance.
    """
    from flask import Response, g, request

    @app.before_request
    def _admit() -> Response | None:
        g.identity = ""
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response(status=204)
        if request.url_rule is None:  # nothing is there: 404 or 405
            return None
        scope = scope_of(request.url_rule.rule)
        if scope is not None:
            model = (request.view_args or {}).get("model", "")
            before = request.environ.get(ADMITTED)
            if before is not None and before[:2] == (scope, model):
                g.identity = before[2]
            else:
                g.identity = guard.admit(request.headers, scope, request.remote_addr or "", model)
        return None

    @app.after_request
    def _cover(response: Response) -> Response:
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers.update(guard.preflight(origin))
        response.headers.update(guard.response_headers(origin))
        return response
