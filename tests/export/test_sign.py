"""Signatures of bundles: made by `export.sign`, asked for by `serve.manifest.read(trust=...)`."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from export import ExportError
from export.sign import load_key, make_key, sign
from serve.manifest import (
    MANIFEST,
    SIGNATURE,
    SUMS,
    BundleError,
    Manifest,
    Port,
    Precision,
    key_id,
    load_trust,
    read,
    seal,
)


@pytest.fixture
def pair(tmp_path):
    return make_key(tmp_path / "release")


@pytest.fixture
def bundle(tmp_path):
    """A sealed bundle whose ONNX file is an empty model."""
    return write(tmp_path / "store" / "empty" / "1")


def write(folder):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"\x08\x08")  # ir_version: 8
    port = Port("x", "FP32", (-1, 1), ("batch", "columns"))
    manifest = Manifest(
        name=folder.parent.name, version=folder.name, architecture="none", task="regression", kind="table", inputs=(port,),
        outputs=(port,), labels=("x",), metric="r2", precisions={"fp32": Precision("model.onnx", 2, 0.0)},
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)
    return folder


def test_a_signed_bundle_is_trusted_and_tells_who_signed(bundle, pair):
    private, public = pair
    signer = sign(bundle, private)
    trust = load_trust(public)
    assert signer == key_id(trust[0])
    assert read(bundle, trust=trust).signers == (signer,)
    assert read(bundle).signers == ()


def test_an_unsigned_bundle_is_refused_only_where_a_signature_is_asked_for(bundle, pair):
    assert read(bundle).manifest.name == "empty"
    with pytest.raises(BundleError, match="is not signed, and only signed bundles are trusted here"):
        read(bundle, trust=load_trust(pair[1]))


def test_another_key_is_not_trusted(bundle, pair, tmp_path):
    signer = sign(bundle, make_key(tmp_path / "stranger")[0])
    with pytest.raises(BundleError, match=f"is signed by {signer}, trusted are {key_id(load_trust(pair[1])[0])}"):
        read(bundle, trust=load_trust(pair[1]))


def test_a_bundle_changed_and_sealed_again_is_refused(bundle, pair):
    private, public = pair
    sign(bundle, private)
    signature = (bundle / SIGNATURE).read_bytes()
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "labels": ["y"]}))
    seal(bundle)
    assert not (bundle / SIGNATURE).exists()
    (bundle / SIGNATURE).write_bytes(signature)  # the signature of the former content
    assert read(bundle).manifest.labels == ("y",)
    with pytest.raises(BundleError, match="the bundle was changed after it was signed"):
        read(bundle, trust=load_trust(public))


def test_a_signature_cannot_be_moved_to_another_version(bundle, pair, tmp_path):
    private, public = pair
    sign(bundle, private)
    other = write(tmp_path / "store" / "empty" / "2")
    (other / SIGNATURE).write_bytes((bundle / SIGNATURE).read_bytes())
    with pytest.raises(BundleError, match="another bundle's"):
        read(other, trust=load_trust(public))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-2] + ("0" if text[-2] != "0" else "1") + "\n",
        lambda text: text.upper(),
        lambda text: text.rstrip("\n"),
        lambda text: text + "more\n",
        lambda text: "",
        lambda text: "\n",
        lambda text: text.replace("ed25519", "none"),
        lambda text: text.split()[0] + " " + text.split()[1] + " \n",
        lambda text: text * 2 + "\x00",
    ],
)
def test_a_damaged_signature_is_refused(bundle, pair, damage):
    private, public = pair
    sign(bundle, private)
    (bundle / SIGNATURE).write_text(damage((bundle / SIGNATURE).read_text()))
    with pytest.raises(BundleError, match="sign"):
        read(bundle, trust=load_trust(public))


def test_signers_stand_side_by_side_and_a_folder_of_keys_trusts_each(bundle, tmp_path):
    folder = tmp_path / "trusted"
    folder.mkdir()
    first, second = make_key(folder / "first"), make_key(folder / "second")
    signers = [sign(bundle, first[0]), sign(bundle, second[0])]
    assert sign(bundle, first[0]) == signers[0]  # again: replaced, not added
    assert len((bundle / SIGNATURE).read_text().splitlines()) == 2
    assert sorted(read(bundle, trust=load_trust(folder)).signers) == sorted(signers)
    for _, public in (first, second):
        assert read(bundle, trust=load_trust(public)).signers == (key_id(load_trust(public)[0]),)


def test_a_damaged_bundle_is_not_signed(bundle, pair):
    (bundle / "model.onnx").write_bytes(b"\x08\x09")
    with pytest.raises(BundleError, match="does not match its hash"):
        sign(bundle, pair[0])
    assert not (bundle / SIGNATURE).exists()


def test_private_keys_are_their_owners_and_never_overwritten(pair, tmp_path):
    private, public = pair
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" in private.read_bytes() and b"PRIVATE" not in public.read_bytes()
    with pytest.raises(ExportError, match=r"release\.key exists, and keys are never overwritten"):
        make_key(tmp_path / "release")


def test_an_encrypted_key_needs_its_password(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_KEY_PASSWORD", "correct horse")
    private, public = make_key(tmp_path / "locked")
    assert b"ENCRYPTED" in private.read_bytes()
    sign(bundle, private)
    assert read(bundle, trust=load_trust(public)).signers
    for password, message in (("", "is encrypted"), ("wrong", "its password is another one")):
        monkeypatch.setenv("ZOO_KEY_PASSWORD", password)
        with pytest.raises(ExportError, match=message):
            load_key(private)


def test_what_is_no_key_is_told(tmp_path, pair):
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "rsa.pub").write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="another kind than Ed25519"):
        load_key(tmp_path / "rsa.key")
    with pytest.raises(ExportError, match="is no private key"):
        load_key(pair[1])
    with pytest.raises(ValueError, match="another kind than Ed25519"):
        load_trust(tmp_path / "rsa.pub")
    with pytest.raises(ValueError, match="is no public key in PEM"):
        load_trust(pair[0])
    with pytest.raises(FileNotFoundError, match=r"has no file \*\.pub"):
        load_trust(tmp_path / "empty")


def test_openssl_agrees(bundle, pair, tmp_path):
    """What is signed is documented in SECURITY.md, and other tools can check it."""
    private, public = pair
    sign(bundle, private)
    (tmp_path / "message").write_bytes(b"zooroad bundle 1\n" + (bundle / SUMS).read_bytes())
    (tmp_path / "signature").write_bytes(bytes.fromhex((bundle / SIGNATURE).read_text().split()[2]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", tmp_path / "message"]
    try:
        found = subprocess.run(
            [*command, "-sigfile", tmp_path / "signature"], capture_output=True, timeout=20, check=False
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert found.returncode == 0, found.stderr


def test_the_device_runner_reads_signed_bundles(bundle, pair):
    from export import edge_runner

    (bundle / "golden.npz").write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    seal(bundle)
    sign(bundle, pair[0])
    assert edge_runner.verify(bundle) == 3


def test_the_command_line_makes_keys_and_signs(bundle, tmp_path):
    from zoo.cli import app

    def zoo(*words):
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.exception
        return found.stdout

    assert "public: give it to servers" in zoo("sign", "--new-key", tmp_path / "release")
    signer = zoo("sign", bundle, "--key", tmp_path / "release.key").split()[-1]
    assert read(bundle, trust=load_trust(tmp_path / "release.pub")).signers == (signer,)
    for words in (["sign", bundle], ["sign", bundle, "--new-key", tmp_path / "x"]):
        assert isinstance(CliRunner().invoke(app, [str(word) for word in words]).exception, ValueError)


def test_keys_of_the_command_line(tmp_path):
    from zoo.cli import app

    file = tmp_path / "keys.json"

    def zoo(*words):
        return CliRunner().invoke(app, ["keys", *words, "--keys", str(file)])

    made = zoo("make", "shop", "--scope", "explain", "--model", "digits", "--expires", "90d", "--rate", "5")
    token = made.stdout.strip()
    assert token.startswith("zk_") and token not in file.read_text() and "only time" in made.stderr
    key = token.split("_")[1]
    heir = zoo("rotate", key, "--overlap", "2h").stdout.strip().split("_")[1]
    assert f"key {key} of shop is revoked" in zoo("revoke", key).stdout
    rows = {row.split()[0]: row for row in zoo("list").stdout.splitlines()}
    assert "revoked" in rows[key] and "active" in rows[heir] and "5 (5)" in rows[heir] and "digits" in rows[heir]
    assert token not in "".join(rows.values())
    assert "--expires takes" in str(zoo("make", "shop", "--expires", "soon").exception)


def test_reading_without_trust_needs_no_cryptography(bundle):
    code = f"import sys; sys.modules['cryptography'] = None; from serve.manifest import read; print(read({str(bundle)!r}).digest)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == read(bundle).digest
    code = f"import sys; sys.modules['cryptography'] = None; from serve.manifest import load_trust; load_trust({str(bundle)!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "run: pip install cryptography" in found.stderr


def test_an_export_is_signed_before_it_appears(lenet, digits, pair, tmp_path):
    from export import to_bundle

    private, public = pair
    with pytest.raises(FileNotFoundError):
        to_bundle(lenet, tmp_path / "store" / "digits" / "1", data=digits, int8=False, sign=tmp_path / "no.key")
    assert not (tmp_path / "store" / "digits").exists()
    made = to_bundle(lenet, tmp_path / "store" / "digits" / "1", data=digits, int8=False, sign=private)
    assert read(made.folder, trust=load_trust(public)).manifest.name == "digits"
