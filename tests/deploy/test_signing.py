"""Signed bundles: written by real keys, verified by this package and by openssl."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from typer.testing import CliRunner

import autotune
from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy import bundle, bundle_manifest
from autotune.deploy.signing import PrivateKey, PublicKeys
from autotune.errors import ArtifactError, RequestError, SignatureError

PKCS8, NO_PASSWORD = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


def write_keys(folder, name, key=None, encryption=NO_PASSWORD):
    """Write both PEM files of a key, by default a new one of Ed25519, and return their paths."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, PKCS8, encryption))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path, "own")


@pytest.fixture
def signed(tuned_net, tmp_path, keys):
    """A bundle that a test may change, signed by the command."""
    out = tmp_path / "signed.plan"
    given = ["export", "net", "--db", tuned_net.database, "--out", str(out), "--sign", str(keys[0]), "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0 and json.loads(done.stdout)["signed"] is True
    return out


@pytest.fixture
def unsigned(tuned_net, tmp_path):
    with Store.open(tuned_net.database) as store:
        (plan,) = store.plans.list(name="net")
        return bundle.write_bundle(plan, store, tmp_path / "unsigned.plan")


@pytest.fixture
def parses_nothing(monkeypatch):
    """From here on a bundle whose manifest is parsed, or whose files are listed, fails the test."""

    def refused(*_, **__):
        pytest.fail("the bundle was parsed")

    monkeypatch.setattr(bundle_manifest, "json", SimpleNamespace(loads=refused))
    monkeypatch.setattr(bundle_manifest, "names_below", refused)


@pytest.mark.parametrize("form", ["path", "name", "text", "bytes", "several"])
def test_a_bundle_is_loaded_under_the_key_that_signed_it(form, signed, keys, tuned_net, tmp_path):
    public, other = keys[1], write_keys(tmp_path, "other")[1]
    required = {
        "path": public, "name": str(public), "text": public.read_text(), "bytes": public.read_bytes(),
        "several": [other, public.read_text()],
    }[form]  # fmt: skip
    fast = autotune.load_bundle(signed, device="cpu", require_signature=required)
    assert fast.signature == "verified" and fast(**tuned_net.inputs).second.shape == (3, 4)
    fast.close()


def test_openssl_verifies_the_same_signature(signed, keys):
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", str(keys[1])]
    command += ["-in", str(signed / "manifest.json"), "-sigfile", str(signed / "manifest.sig")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.usefixtures("parses_nothing")
@pytest.mark.parametrize("change", ["space", "truncated", "signature", "short", "long", "link", "other key"])
def test_one_that_was_changed_or_signed_by_another_is_refused_unread(change, signed, keys, tmp_path):
    manifest, signature, public = signed / "manifest.json", signed / "manifest.sig", keys[1]
    content = signature.read_bytes()
    if change == "space":
        manifest.write_bytes(manifest.read_bytes() + b" ")
    elif change == "truncated":
        manifest.write_bytes(manifest.read_bytes()[:-1])
    elif change == "signature":
        signature.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif change == "short":
        signature.write_bytes(content[:-1])
    elif change == "long":
        signature.write_bytes(content + b"\n")
    elif change == "link":
        shutil.move(signature, tmp_path / "elsewhere")
        signature.symlink_to(tmp_path / "elsewhere")
    else:
        public = write_keys(tmp_path, "other")[1]
    with pytest.raises(SignatureError):
        autotune.load_bundle(signed, device="cpu", require_signature=public)


@pytest.mark.usefixtures("parses_nothing")
def test_an_unsigned_one_is_refused_unread(unsigned, keys):
    with pytest.raises(SignatureError, match=r"not signed[\s\S]*--sign"):
        autotune.load_bundle(unsigned, device="cpu", require_signature=keys[1])


def test_a_file_changed_after_the_signature_is_refused(signed, keys):
    file = max((signed / "artifact").iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="SHA-256"):
        autotune.load_bundle(signed, device="cpu", require_signature=keys[1])


def test_without_the_policy_a_signature_is_shown_and_not_checked(signed, unsigned):
    (signed / "manifest.sig").write_bytes(b"?")
    for path, shown in ((signed, "not checked"), (unsigned, "none")):
        fast = autotune.load_bundle(path, device="cpu")
        assert fast.signature == shown
        fast.close()


OTHER_KINDS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed448": None,
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_keys_of_other_kinds_are_refused_by_name(kind, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ed448

    make = OTHER_KINDS[kind] or ed448.Ed448PrivateKey.generate
    private, public = write_keys(tmp_path, "other", make())
    with pytest.raises(RequestError, match=f"key of kind {kind}"):
        PrivateKey(private)
    with pytest.raises(RequestError, match=f"key of kind {kind}"):
        PublicKeys(public)


def test_what_is_no_key_is_refused_before_anything_is_written(keys, tmp_path, tuned_net):
    (tmp_path / "text").write_text("no key")
    locked, _ = write_keys(tmp_path, "locked", encryption=serialization.BestAvailableEncryption(b"secret"))
    for path in (keys[1], tmp_path / "text", tmp_path / "missing", tmp_path, locked):
        given = ["export", "net", "--db", tuned_net.database, "--out", str(tmp_path / "b"), "--sign", str(path)]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 2 and not (tmp_path / "b").exists(), path
    for key in (keys[0], keys[0].read_text(), tmp_path / "missing", "no key", "-----BEGIN PUBLIC KEY-----", []):
        with pytest.raises(RequestError):
            PublicKeys(key)


def test_a_machine_without_the_package_is_told_how_to_install_it(keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    for make, path in ((PrivateKey, keys[0]), (PublicKeys, keys[1])):
        with pytest.raises(RequestError, match="pip install cryptography"):
            make(path)
