"""Keys, tokens, limits, origins and headers, without and with the app behind them."""

import base64
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from test_serve_host import serving

from serve import guard as guards
from serve.app import create_app
from serve.errors import RequestError
from serve.guard import ADMITTED, Guard, asked, configured, scope_of
from serve.keys import KeyFile, Rate

IMAGE = {"image": [[0, 0, 255, 255]] * 4}
AUDIENCE = "digits-service"


@pytest.fixture
def keys(tmp_path):
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

    stopped = Clock()
    monkeypatch.setattr(guards, "time", stopped)
    return stopped


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def refusal(guard, *request, status):
    with pytest.raises(RequestError) as caught:
        guard.admit(*request)
    assert caught.value.status == status
    return caught.value


def look(guard):
    """As if the second between two looks at the files had passed."""
    guard._looked -= 2 * guards.LOOK


# keys as they are stored


def test_the_file_holds_hashes_alone_and_is_its_owners(keys):
    key, token = keys.make("shop", ["predict", "explain"], models=["digits"], lasts=timedelta(days=1))
    text = keys.path.read_text()
    assert token.split("_")[2] not in text and token.startswith(f"zk_{key.id}_")
    assert keys.path.stat().st_mode & 0o777 == 0o600
    assert keys.read() == [key]
    assert (key.scopes, key.models, key.state()) == (("predict", "explain"), ("digits",), "active")
    assert key.state(datetime.now(UTC) + timedelta(days=2)) == "expired"


def test_a_key_file_that_others_can_write_to_is_refused(keys):
    keys.make("shop")
    keys.path.chmod(0o664)
    with pytest.raises(ValueError, match="can be written by others"):
        keys.read()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (b"{", "is not a key file"),
        (b"[" * 100_000, "is not a key file"),
        (b'{"format": 2, "keys": []}', "format 2 is not 1"),
        ({"scopes": ["predict", "root"]}, "no scope is called 'root'"),
        ({"scopes": []}, "needs a scope"),
        ({"sha256": "00"}, "no SHA-256"),
        ({"id": "../../../"}, "eight hexadecimal digits"),
        ({"expires": "2030-01-31"}, "in UTC"),
        ({"rate": -1.0, "burst": 1}, "above 0 requests"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_damaged_key_file_is_refused_with_the_reason(keys, changed, message):
    keys.make("shop")
    if isinstance(changed, dict):
        raw = json.loads(keys.path.read_text())
        raw["keys"][0] |= changed
        changed = json.dumps(raw).encode()
    keys.path.write_bytes(changed)
    with pytest.raises(ValueError, match=message):
        keys.read()


def test_rotation_keeps_the_rights_and_ends_the_old_key_after_the_overlap(keys):
    old, token = keys.make("shop", ["explain"], models=["digits"], lasts=timedelta(days=30), limit=Rate(5, 9))
    new, fresh = keys.rotate(old.id, overlap=timedelta(days=7))
    assert fresh != token and new.replaces == old.id
    assert (new.name, new.scopes, new.models, new.rate, new.burst) == ("shop", ("explain",), ("digits",), 5, 9)
    before, after = keys.read()
    ends = [datetime.fromisoformat(key.expires) - datetime.now(UTC) for key in (before, after)]
    assert timedelta(days=6.9) < ends[0] <= timedelta(days=7) and timedelta(days=29.9) < ends[1] <= timedelta(days=30)
    guard = Guard(keys=keys.path)
    assert {guard.admit(bearer(each), "explain", "", "digits") for each in (token, fresh)} == {
        f"key:{old.id}",
        f"key:{new.id}",
    }
    with pytest.raises(ValueError, match=f"rotated already; its successor is {new.id}"):
        keys.rotate(old.id)


def test_a_revoked_or_unknown_key_cannot_be_rotated(keys):
    key, _ = keys.make("shop")
    assert keys.revoke(key.id).state() == "revoked"
    with pytest.raises(ValueError, match="is revoked; make a new one"):
        keys.rotate(key.id)
    with pytest.raises(LookupError, match="no key has the id 'ffffffff'"):
        keys.revoke("ffffffff")


def test_keys_made_at_the_same_time_are_all_kept(keys):
    threads = [threading.Thread(target=keys.make, args=(f"client {number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(key.name for key in keys.read()) == sorted(f"client {number}" for number in range(12))
    assert sorted(path.name for path in keys.path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


# who may


def test_without_keys_everybody_predicts_and_nobody_administrates():
    guard = Guard()
    assert [guard.admit({}, scope, "::1") for scope in ("predict", "explain", "metrics")] == ["", "", ""]
    assert guard.admit(bearer("whatever"), "predict", "::1") == ""
    error = refusal(guard, {}, "admin", "::1", status=403)
    assert "zoo keys make NAME --scope admin" in error.message
    refusal(guard, bearer("zk_00000000_" + 64 * "0"), "admin", "::1", status=403)


def test_a_key_opens_its_scopes_and_models_and_nothing_else(keys):
    key, token = keys.make("shop", ["predict"], models=["digits"])
    guard = Guard(keys=keys.path)
    assert guard.admit(bearer(token), "predict", "::1", "digits") == f"key:{key.id}"
    assert guard.admit({"authorization": f"bearer   {token} "}, "predict", "::1", "digits") == f"key:{key.id}"
    assert "does not cover 'admin'" in refusal(guard, bearer(token), "admin", "::1", status=403).message
    assert "not for this model" in refusal(guard, bearer(token), "predict", "::1", "other", status=403).message
    assert guard.models_of(bearer(token)) == {"digits"}
    _, unlimited = keys.make("all")
    look(guard)
    guard.admit(bearer(unlimited), "predict", "::1")
    assert guard.models_of(bearer(unlimited)) is None


def test_an_admin_key_predicts_only_if_it_says_so(keys):
    both, alone = keys.make("both", ["admin", "predict"])[1], keys.make("operator", ["admin"])[1]
    guard = Guard(keys=keys.path)
    assert guard.admit(bearer(both), "predict", "")
    refusal(guard, bearer(alone), "predict", "", status=403)


@pytest.mark.parametrize("spoil", ["secret", "id", "case", "short", "basic", "none", "long", "unicode"])
def test_a_wrong_credential_is_401_and_told_nothing(keys, spoil):
    key, token = keys.make("shop")
    last = "0" if token[-1] != "0" else "1"
    sent = {
        "secret": f"Bearer {token[:-1]}{last}",
        "id": f"Bearer zk_{'0' * 8 if key.id != '0' * 8 else '1' * 8}{token[11:]}",
        "case": f"Bearer {token.upper()}",
        "short": f"Bearer {token[:-1]}",
        "basic": "Basic " + base64.b64encode(token.encode()).decode(),
        "none": "Bearer ",
        "long": "Bearer " + "a" * 100_000,
        "unicode": "Bearer zk_\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661_" + 64 * "\u0661",
    }[spoil]
    error = refusal(Guard(keys=keys.path), {"authorization": sent}, "predict", "::1", status=401)
    assert "it is not one of this server's" in error.message and error.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_missing_credential_is_401_where_there_are_keys(keys):
    keys.make("shop")
    guard = Guard(keys=keys.path)
    assert "Authorization: Bearer <key>" in refusal(guard, {}, "predict", "::1", status=401).message
    refusal(guard, {}, "admin", "::1", status=401)
    assert guard.admit({}, "metrics", "::1") == ""
    refusal(Guard(keys=keys.path, anonymous=()), {}, "metrics", "::1", status=401)


def test_scopes_can_be_left_open_beside_keys(keys):
    _, token = keys.make("ops", ["admin"])
    guard = Guard(keys=keys.path, anonymous=("predict",))
    assert guard.admit({}, "predict", "::1") == ""
    assert guard.admit(bearer(token), "predict", "::1").startswith("key:")
    refusal(guard, {}, "explain", "::1", status=401)
    refusal(guard, bearer(token[:-4] + "zzzz"), "predict", "::1", status=401)
    with pytest.raises(ValueError, match="got 'admin'"):
        Guard(keys=keys.path, anonymous=("admin",))


def test_expiry_and_revocation_are_told_to_the_owner_alone(keys):
    short, token = keys.make("short", lasts=timedelta(seconds=1))
    gone, other = keys.make("gone")
    guard = Guard(keys=keys.path)
    assert guard.admit(bearer(other), "predict", "") == f"key:{gone.id}"
    keys.revoke(gone.id)
    look(guard)
    assert "it is revoked" in refusal(guard, bearer(other), "predict", "", status=401).message
    raw = json.loads(keys.path.read_text())
    raw["keys"][0]["expires"] = "2001-01-01T00:00:00+00:00"
    keys.path.write_text(json.dumps(raw))
    look(guard)
    assert "it has expired" in refusal(guard, bearer(token), "predict", "", status=401).message
    assert "not one of" in refusal(guard, bearer(token + "x"), "predict", "", status=401).message
    assert short.id != gone.id


def test_a_changed_key_file_is_read_again_and_a_damaged_one_changes_nothing(keys, caplog):
    _, token = keys.make("first")
    guard = Guard(keys=keys.path)
    _, second = keys.make("second")
    refusal(guard, bearer(second), "predict", "", status=401)  # a second has not passed
    look(guard)
    assert guard.admit(bearer(second), "predict", "")
    keys.path.write_text("{}")
    for _ in range(3):
        look(guard)
        assert guard.admit(bearer(token), "predict", "")
    keys.path.unlink()
    look(guard)
    assert guard.admit(bearer(second), "predict", "")
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and all("what it said before stays in force" in message for message in told)
    assert not any(token in message or second in message for message in told)


# how often


def test_a_bucket_lets_a_burst_through_and_then_the_rate(clock):
    guard = Guard(peer_rate=Rate(2, 3))
    for _ in range(3):
        guard.admit({}, "predict", "10.0.0.1")
    error = refusal(guard, {}, "predict", "10.0.0.1", status=429)
    assert error.headers == {"Retry-After": "1"} and "more than 2 requests a second" in error.message
    guard.admit({}, "predict", "10.0.0.2")
    clock.now += 0.5
    guard.admit({}, "predict", "10.0.0.1")
    refusal(guard, {}, "predict", "10.0.0.1", status=429)
    clock.now += 1000
    for _ in range(3):
        guard.admit({}, "predict", "10.0.0.1")
    refusal(guard, {}, "predict", "10.0.0.1", status=429)


def test_retry_after_is_when_the_next_request_passes(clock):
    guard = Guard(peer_rate=Rate(0.1, 1))
    guard.admit({}, "predict", "a")
    wait = int(refusal(guard, {}, "predict", "a", status=429).headers["Retry-After"])
    clock.now += wait - 0.1
    refusal(guard, {}, "predict", "a", status=429)
    clock.now += 0.1
    guard.admit({}, "predict", "a")


def test_each_key_has_its_own_rate_or_the_servers(keys, clock):
    slow, fast = keys.make("slow", limit=Rate(1, 1))[1], keys.make("fast")[1]
    guard = Guard(keys=keys.path, key_rate=Rate(1, 5))
    guard.admit(bearer(slow), "predict", "")
    refusal(guard, bearer(slow), "predict", "", status=429)
    for _ in range(5):
        guard.admit(bearer(fast), "predict", "")
    refusal(guard, bearer(fast), "predict", "", status=429)


def test_guessing_is_slowed_down_like_any_other_client(keys, clock):
    _, token = keys.make("shop")
    guard = Guard(keys=keys.path, peer_rate=Rate(1, 2))
    for _ in range(2):
        refusal(guard, bearer("zk_00000000_" + 64 * "0"), "predict", "10.0.0.1", status=401)
    refusal(guard, bearer("zk_00000000_" + 64 * "0"), "predict", "10.0.0.1", status=429)
    assert guard.admit(bearer(token), "predict", "10.0.0.1")  # a good key behind the same address is not held up


@pytest.mark.parametrize(
    ("proxies", "first", "second", "one_client"),
    [
        (0, ({}, "10.0.0.1"), ({"x-forwarded-for": "9.9.9.9"}, "10.0.0.1"), True),
        (1, ({"x-forwarded-for": "1.1.1.1"}, "10.0.0.1"), ({"x-forwarded-for": "2.2.2.2"}, "10.0.0.1"), False),
        (1, ({"x-forwarded-for": "7.7.7.7, 1.1.1.1"}, "p"), ({"x-forwarded-for": "8.8.8.8, 1.1.1.1"}, "q"), True),
        (2, ({"x-forwarded-for": "1.1.1.1, 5.5.5.5"}, "p"), ({"x-forwarded-for": "1.1.1.1, 6.6.6.6"}, "p"), True),
        (0, ({}, "2001:db8::1"), ({}, "2001:db8::ffff:2"), True),
        (0, ({}, "2001:db8::1"), ({}, "2001:db8:0:1::1"), False),
        (0, ({}, "::ffff:10.0.0.1"), ({}, "10.0.0.1"), True),
        (0, ({}, "fe80::1%eth0"), ({}, "fe80::1%eth1"), True),
    ],
)
def test_what_counts_as_one_client(proxies, first, second, one_client):
    guard = Guard(peer_rate=Rate(0.001, 1), proxies=proxies)
    guard.admit(first[0], "predict", first[1])
    if one_client:
        refusal(guard, second[0], "predict", second[1], status=429)
    else:
        guard.admit(second[0], "predict", second[1])


def test_no_more_clients_are_remembered_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(guards, "BUCKETS", 8)
    guard = Guard(peer_rate=Rate(0.001, 1))
    for number in range(100):
        guard.admit({}, "predict", f"10.0.0.{number}")
    assert len(guard._buckets) == 8
    refusal(guard, {}, "predict", "10.0.0.99", status=429)


def test_a_peer_cannot_name_the_bucket_of_a_key(keys, clock):
    key, token = keys.make("shop", limit=Rate(0.001, 1))
    guard = Guard(keys=keys.path, peer_rate=Rate(1, 1), proxies=1)
    refusal(guard, {"x-forwarded-for": f"key:{key.id}"}, "predict", "10.0.0.1", status=401)
    assert guard.admit(bearer(token), "predict", "10.0.0.1")


def test_limits_hold_under_threads():
    guard = Guard(peer_rate=Rate(0.001, 100))
    passed = []

    def ask():
        for _ in range(100):
            try:
                guard.admit({}, "predict", "a")
            except RequestError:
                continue
            passed.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(passed) == 100


# JSON Web Tokens


def write_public(path, private):
    path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def ed_key():
    return ed25519.Ed25519PrivateKey.generate()


def claims(**changes):
    given = {"sub": "anna", "aud": AUDIENCE, "exp": time.time() + 60, "scope": "predict openid", **changes}
    return {name: value for name, value in given.items() if value is not None}


def test_tokens_of_each_algorithm_are_verified(tmp_path, rsa_key, ed_key):
    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "secret").write_text("s" * 40 + "\n")
    for algorithm, private, public in (
        ("RS256", rsa_key, write_public(tmp_path / "rsa.pub", rsa_key)),
        ("EdDSA", ed_key, write_public(tmp_path / "ed.pub", ed_key)),
        ("ES256", curve, write_public(tmp_path / "ec.pub", curve)),
        ("HS256", "s" * 40, tmp_path / "secret"),
    ):
        guard = Guard(jwt_key=public, jwt_audience=AUDIENCE)
        token = jwt.encode(claims(), private, algorithm)
        for _ in range(2):  # checked, then remembered
            assert guard.admit(bearer(token), "predict", "::1", "any") == "jwt:anna"
        refusal(guard, bearer(token), "admin", "::1", status=403)
        head, _, signature = token.split(".")
        forged = base64.urlsafe_b64encode(json.dumps(claims(scope="admin")).encode()).rstrip(b"=").decode()
        refusal(guard, bearer(f"{head}.{forged}.{signature}"), "admin", "::1", status=401)
        refusal(guard, {}, "predict", "::1", status=401)


def encoded(head, body, signature=b""):
    parts = (json.dumps(head).encode(), json.dumps(body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_a_token_cannot_choose_its_algorithm(tmp_path, rsa_key):
    import hashlib
    import hmac

    public = write_public(tmp_path / "rsa.pub", rsa_key)
    guard = Guard(jwt_key=public, jwt_audience=AUDIENCE)
    for name in ("none", "None", "NONE", ""):
        refusal(guard, bearer(encoded({"alg": name, "typ": "JWT"}, claims(scope="admin"))), "admin", "", status=401)
    head, body, _ = encoded({"alg": "HS256", "typ": "JWT"}, claims(scope="admin")).split(".")
    mac = hmac.new(public.read_bytes(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    signature = base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
    refusal(guard, bearer(f"{head}.{body}.{signature}"), "admin", "", status=401)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1_000_000}, "token has expired"),
        ({"exp": None}, "token lacks one of exp, aud and iss"),
        ({"aud": "another service"}, "token is made for another audience"),
        ({"aud": None}, "token lacks one of exp, aud and iss"),
        ({"iss": "https://elsewhere.example"}, "token comes from another issuer"),
        ({"nbf": 4_000_000_000}, "token is not valid yet"),
        ({"models": "digits"}, "cannot be read"),
    ],
)
def test_a_token_with_wrong_claims_is_refused(tmp_path, ed_key, changes, reason):
    guard = Guard(
        jwt_key=write_public(tmp_path / "key.pub", ed_key), jwt_audience=AUDIENCE, jwt_issuer="https://id.example"
    )
    good = claims(iss="https://id.example")
    assert guard.admit(bearer(jwt.encode(good, ed_key, "EdDSA")), "predict", "")
    bad = {name: value for name, value in {**good, **changes}.items() if value is not None}
    error = refusal(guard, bearer(jwt.encode(bad, ed_key, "EdDSA")), "predict", "", status=401)
    assert reason in error.message


def test_a_remembered_token_still_expires(tmp_path, ed_key, monkeypatch):
    guard = Guard(jwt_key=write_public(tmp_path / "key.pub", ed_key), jwt_audience=AUDIENCE)
    token = jwt.encode(claims(), ed_key, "EdDSA")
    assert guard.admit(bearer(token), "predict", "") == "jwt:anna"
    now = time.time()
    monkeypatch.setattr(guards.time, "time", lambda: now + 3600)
    assert "it has expired" in refusal(guard, bearer(token), "predict", "", status=401).message


def test_scopes_and_models_come_from_claims(tmp_path, ed_key):
    guard = Guard(jwt_key=write_public(tmp_path / "key.pub", ed_key), jwt_audience=AUDIENCE, jwt_scopes="roles")
    given = claims(roles=["explain", "root"], models=["digits"], sub="an\nna")
    token = jwt.encode(given, ed_key, "EdDSA")
    assert guard.admit(bearer(token), "explain", "", "digits") == "jwt:an?na"
    refusal(guard, bearer(token), "predict", "", "digits", status=403)
    refusal(guard, bearer(token), "explain", "", "other", status=403)
    assert guard.models_of(bearer(token)) == {"digits"}


def test_a_key_set_is_read_again_when_the_issuer_rotates(tmp_path, rsa_key, ed_key):
    def entry(key, name):
        return json.loads(
            jwt.get_algorithm_by_name("RS256" if key is rsa_key else "EdDSA").to_jwk(key.public_key())
        ) | {"kid": name}

    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [entry(rsa_key, "old")]}))
    guard = Guard(jwt_key=path, jwt_audience=AUDIENCE)
    old = jwt.encode(claims(), rsa_key, "RS256", headers={"kid": "old"})
    new = jwt.encode(claims(sub="bert"), ed_key, "EdDSA", headers={"kid": "new"})
    assert guard.admit(bearer(old), "predict", "") == "jwt:anna"
    refusal(guard, bearer(new), "predict", "", status=401)
    path.write_text(json.dumps({"keys": [entry(ed_key, "new"), entry(ed_key, "spare")]}))
    look(guard)
    assert guard.admit(bearer(new), "predict", "") == "jwt:bert"
    refusal(guard, bearer(old), "predict", "", status=401)


def test_no_more_tokens_are_remembered_than_there_is_room_for(tmp_path, ed_key, monkeypatch):
    from serve import credentials

    monkeypatch.setattr(credentials, "VERIFIED", 4)
    guard = Guard(jwt_key=write_public(tmp_path / "key.pub", ed_key), jwt_audience=AUDIENCE)
    for number in range(10):
        guard.admit(bearer(jwt.encode(claims(sub=str(number)), ed_key, "EdDSA")), "predict", "")
    assert len(guard._tokens._verified) == 4


def test_keys_that_are_too_weak_or_private_are_refused(tmp_path, ed_key):
    (tmp_path / "short").write_text("secret")
    (tmp_path / "private").write_bytes(ed_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_public(tmp_path / "weak", rsa.generate_private_key(65537, 1024))
    (tmp_path / "jwks").write_text('{"keys": []}')
    for name, message in (("short", "at least 32"), ("private", "private key"), ("weak", "2048"), ("jwks", "Key Set")):
        with pytest.raises(ValueError, match=message):
            Guard(jwt_key=tmp_path / name, jwt_audience=AUDIENCE)
    with pytest.raises(ValueError, match="give --jwt-audience"):
        Guard(jwt_key=tmp_path / "short")


# options, origins, headers


def test_options_of_the_command_line(keys):
    keys.make("shop")
    guard = configured(keys=keys.path, anonymous="predict, metrics", key_rate="0.5", peer_rate="10/40")
    assert guard.admit({}, "metrics", "a") == ""
    assert guard._peer_rate == Rate(10, 40)
    assert next(iter(guard._keys.content.values())).rate == Rate(0.5, 1)
    for options in (
        {"peer_rate": "fast"},
        {"peer_rate": "0"},
        {"key_rate": "1/0"},
        {"proxies": -1},
        {"anonymous": "x"},
    ):
        with pytest.raises(ValueError, match=r"rate|proxies|'x'"):
            configured(**options)


@pytest.mark.parametrize(
    "origin", ["*", "null", "shop.example", "https://shop.example/", "https://Shop.example", "https://a.b\n"]
)
def test_an_origin_is_exact(origin):
    with pytest.raises(ValueError, match="'\\*' is not taken"):
        Guard(origins=[origin])


def test_other_origins_are_told_nothing():
    guard = Guard(origins=["https://shop.example"])
    for page in (True, False):
        allowed = guard.response_headers("https://shop.example", page=page)
        assert allowed["Access-Control-Allow-Origin"] == "https://shop.example" and allowed["Vary"] == "Origin"
        for other in ("https://shop.example.evil", "http://shop.example", "null", None):
            found = guard.response_headers(other, page=page)
            assert "Access-Control-Allow-Origin" not in found and found["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Methods" not in guard.preflight("https://elsewhere.example")
    assert "Vary" not in Guard().response_headers("https://shop.example")


@pytest.mark.parametrize(
    ("rule", "scope"),
    [
        ("/", None),
        ("/page/<path:filename>", None),
        ("/healthz", None),
        ("/v2", None),
        ("/v2/health/ready", None),
        ("/metrics", "metrics"),
        ("/v2/models/<model>", "predict"),
        ("/v2/models/<model>/infer", "predict"),
        ("/v2/models/<model>/explain", "explain"),
        ("/explain/<model>", "explain"),
        ("/models/<model>/examples", "predict"),
        ("/v2/repository/index", "any"),
        ("/models", "any"),
        ("/v2/repository/models/<model>/unload", "admin"),
        ("/admin/traffic/<model>", "admin"),
        ("/admin", "admin"),
        ("/a/new/route", "predict"),
    ],
)
def test_what_a_route_needs(rule, scope):
    assert scope_of(rule) == scope


# with the app


@pytest.fixture
def served(store, keys):
    """The app with keys: predict on one model, admin, and nothing open but health, page and figures."""
    tokens = {
        "predict": keys.make("shop", ["predict"], models=["sides"])[1],
        "admin": keys.make("ops", ["admin"])[1],
        "explain": keys.make("lab", ["explain"])[1],
    }
    guard = Guard(keys=keys.path, origins=["https://shop.example"])
    app = create_app(store, guard=guard, explain_target="fake_explainers:echo", max_body=100_000)
    yield app.test_client(), tokens
    app.extensions["explainer"].close()


def authorised(token):
    return {"Authorization": f"Bearer {token}"}


def test_every_route_but_the_open_ones_needs_a_key(served):
    client, _ = served
    checked = 0
    for rule in client.application.url_map.iter_rules():
        path = rule.rule.replace("<model>", "sides").replace("<version>", "10")
        if "<" in path:
            path = path.replace("<path:filename>", "app.js").replace("<job>", "0")
        for method in rule.methods - {"OPTIONS", "HEAD"}:
            answer = client.open(path, method=method)
            answer.close()  # the page's files stay open otherwise
            if scope_of(rule.rule) in (None, "metrics"):
                assert answer.status_code in (200, 400, 503), path
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                checked += 1
    assert checked >= 12


def test_a_key_is_asked_for_its_scope_and_model(served):
    client, tokens = served
    headers = authorised(tokens["predict"])
    assert client.post("/predict/sides", json=IMAGE, headers=headers).status_code == 200
    assert client.post("/predict/paints", json={"age": 1}, headers=headers).status_code == 403
    assert client.get("/models/paints/examples", headers=headers).status_code == 403
    assert client.post("/explain/sides", json=IMAGE, headers=headers).status_code == 403
    assert client.post("/v2/repository/models/sides/unload", headers=headers).status_code == 403
    assert client.post("/explain/sides", json=IMAGE, headers=authorised(tokens["explain"])).status_code == 200
    assert client.post("/predict/sides", json=IMAGE, headers=authorised(tokens["admin"])).status_code == 403
    assert [entry["name"] for entry in client.get("/models", headers=headers).json] == ["sides"]
    assert client.post("/v2/repository/index", headers=authorised(tokens["admin"])).status_code == 200
    assert client.post("/predict/explain", headers=authorised(tokens["explain"])).status_code == 403  # a model's name


def test_an_unknown_path_is_404_without_a_key(served):
    client, _ = served
    assert client.get("/nothing/here").status_code == 404
    assert client.delete("/predict/sides").status_code == 405


def test_a_body_is_not_unpacked_for_a_client_that_may_not_send_it(served):
    client, _ = served
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert client.post("/predict/sides", data=b"no gzip at all", headers=headers).status_code == 401


def test_preflight_and_answers_for_an_allowed_origin(served):
    client, tokens = served
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/predict/sides", headers=asked)
    assert answer.status_code == 204 and not answer.data
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    answer = client.options("/predict/sides", headers={**asked, "Origin": "https://evil.example"})
    assert answer.status_code == 204 and "Access-Control-Allow-Origin" not in answer.headers
    headers = {**authorised(tokens["predict"]), "Origin": "https://shop.example"}
    answer = client.post("/predict/sides", json=IMAGE, headers=headers)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    refused = client.post("/predict/sides", json=IMAGE, headers={"Origin": "https://shop.example"})
    assert (
        refused.status_code == 401 and "Access-Control-Allow-Origin" in refused.headers
    )  # so that the page can tell why


def test_security_headers_are_on_every_answer(served):
    client, _ = served
    for path in ("/", "/page/app.js", "/v2/health/live", "/nothing", "/models"):
        with client.get(path) as answer:
            headers = answer.headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"


def test_credentials_stay_out_of_logs_and_answers(served, caplog):
    client, tokens = served
    caplog.set_level("DEBUG")
    wrong = tokens["predict"][:-1] + ("0" if tokens["predict"][-1] != "0" else "1")
    answers = [
        client.post("/predict/sides", json=IMAGE, headers=authorised(token))
        for token in (tokens["predict"], wrong, "eyJhbGciOiJub25lIn0.e30.")
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 401]
    text = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    for secret in (tokens["predict"], wrong, "eyJhbGci"):
        assert secret not in text


# with the real process, where inferences never reach the app


def test_the_front_asks_the_same_guard(store_folder, keys):
    key, token = keys.make("shop", ["predict"], limit=Rate(0.001, 4))
    body = {"inputs": [{"name": "image", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": [0] * 16}]}
    command = [sys.executable, "-m", "serve", str(store_folder), "--port", "0", "--workers", "1", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--keys", str(keys.path), "--origin", "https://shop.example"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        found = next(found for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))

        def ask(path, content, **headers):
            asked = urllib.request.Request(found[0] + path, json.dumps(content).encode(), headers)
            asked.add_header("Content-Type", "application/json")
            try:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    return answer.status, answer.headers, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.headers, json.load(error)

        status, headers, told = ask("/v2/models/sides/infer", body)
        assert (status, told["code"]) == (401, "unauthorized") and headers["WWW-Authenticate"].startswith("Bearer")
        authorisation = {"Authorization": f"Bearer {token}", "Origin": "https://shop.example"}
        status, headers, told = ask("/v2/models/sides/infer", body, **authorisation)
        assert status == 200 and told["model_name"] == "sides"
        assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert ask("/v1/models/sides:predict", {"instances": [[[[0]] * 4] * 4]}, **authorisation)[0] == 200
        assert ask("/predict/sides", IMAGE, **authorisation)[0] == 200
        assert ask("/v2/repository/models/sides/unload", {}, **authorisation)[0] == 403
        for path, content in (("/v2/models/sides/infer", body), ("/predict/sides", IMAGE)):  # one bucket for both
            status, headers, _ = ask(path, content, **authorisation)
            assert status == 429 and int(headers["Retry-After"]) > 100
        keys.revoke(key.id)
        deadline = time.monotonic() + 10
        while (status := ask("/v2/models/sides/infer", body, **authorisation)[0]) == 429:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert status == 401
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert token not in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/models/sides/infer", ("predict", "sides")),
        ("/v2/models/sides/versions/1/infer", ("predict", "sides")),
        ("/v1/models/sides:predict", ("predict", "sides")),
        ("/predict/sides", ("predict", "sides")),
        ("/explain/sides", ("explain", "sides")),
        ("/jobs/sides", ("predict", "sides")),
        ("/admin/traffic/sides/pin", ("admin", "")),
        ("/v2/health/ready", (None, "")),
        ("/somewhere", ("predict", "")),
    ],
)
def test_what_a_path_is_about(path, expected):
    assert asked(path) == expected


def test_the_app_believes_only_what_was_asked_for_its_own_route(store, keys):
    _, token = keys.make("shop", ["predict"], limit=Rate(0.001, 2))
    client = create_app(store, guard=Guard(keys=keys.path)).test_client()
    before = {ADMITTED: ("predict", "sides", "key:1")}
    for _ in range(3):  # takes nothing from the rate, and needs no credential
        assert client.post("/predict/sides", json=IMAGE, environ_overrides=before).status_code == 200
    assert client.post("/predict/paints", json={}, environ_overrides=before).status_code == 401
    assert client.post("/explain/sides", json=IMAGE, environ_overrides=before).status_code == 401
    assert client.get("/admin/workers", environ_overrides=before).status_code == 401
    forged = {"X-Zooroad-Admitted": "predict", "zooroad.admitted": "predict"}
    assert client.post("/predict/sides", json=IMAGE, headers=forged).status_code == 401
    assert client.post("/predict/sides", json=IMAGE, headers=bearer(token)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2/models/sides/infer", "/v1/models/sides:predict", "/predict/sides", "/jobs/sides"]
)
@pytest.mark.parametrize("length", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
def test_a_client_without_right_is_refused_before_its_body(store_folder, keys, path, length):
    _, token = keys.make("shop", ["predict"], limit=Rate(0.001, 2))
    with serving(store_folder, "--workers", "1", "--keys", str(keys.path)) as (_, port):

        def status(*lines):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "X-Request-Id: mine", length, *lines, "", ""])
                connection.sendall(head.encode())  # and no body
                head = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[0]
            assert b"X-Request-Id: mine" in head and b"Connection: close" in head
            return int(head.split()[1])

        assert status() == 401
        assert status("Expect: 100-continue") == 401
        assert status(f"Authorization: Bearer {token}0") == 401


def test_a_long_body_is_asked_for_once(store_folder, keys):
    _, token = keys.make("shop", ["predict"], limit=Rate(0.001, 2))
    rows = [[[[0]] * 4] * 4] * 1000
    data = [value for row in rows for line in row for (value,) in line]
    body = {"inputs": [{"name": "image", "shape": [1000, 4, 4, 1], "datatype": "UINT8", "data": data}]}
    with serving(store_folder, "--workers", "1", "--keys", str(keys.path)) as (process, port):

        def ask(path, content):
            raw = json.dumps(content).encode() + b" " * 70_000
            sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", raw, sent)
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        asked = (("/v2/models/sides/infer", body), ("/predict/sides", IMAGE), ("/predict/sides", IMAGE))
        assert [ask(*each) for each in asked] == [200, 200, 429]
        process.terminate()
        lines = [json.loads(line) for line in process.stderr.read().splitlines() if '"route"' in line]
    assert (lines[0]["status"], lines[0]["route"]) == (200, "/v2/models/<model>/infer")
