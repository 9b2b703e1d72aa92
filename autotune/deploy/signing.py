"""Ed25519 signatures of manifests: PrivateKey, PublicKeys.

A signature is the 64 raw bytes over the manifest's exact bytes (RFC 8032), as ``openssl pkeyutl -verify -rawin`` takes
it. The manifest lists size and SHA-256 of every other file, so the signature is over all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import RequestError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
LARGEST_KEY_BYTES = 64 << 10
PEM = b"-----BEGIN "

PublicKey = str | bytes | Path
"""A public key: its PEM text, or the path of a file that holds it."""


class PrivateKey:
    """The private key of a PEM file; raises RequestError if the file holds no Ed25519 key without a password."""

    def __init__(self, path: Path) -> None:
        self._key = _private(path)

    def sign(self, content: bytes) -> bytes:
        """Return the signature of a manifest's bytes."""
        return self._key.sign(content)


class PublicKeys:
    """Public keys, any of which may have signed a bundle; raises RequestError if there is none, or one is no key."""

    def __init__(self, keys: PublicKey | Sequence[PublicKey]) -> None:
        several = [keys] if isinstance(keys, str | bytes | Path) else list(keys)
        if not several:
            raise RequestError(
                "require_signature needs a public key", found="an empty list", expected="PEM text, or the path of it"
            )
        self._keys = [_public(key) for key in several]

    def accept(self, content: bytes, signature: bytes) -> bool:
        """Return whether a signature is that of one of these keys over exactly this content."""
        from cryptography.exceptions import InvalidSignature

        for key in self._keys:
            try:
                key.verify(signature, content)
            except InvalidSignature:
                continue
            return True
        return False


def _private(path: Path) -> "Ed25519PrivateKey":
    _require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    expected = "a PEM file of an Ed25519 private key without a password"
    run = "openssl genpkey -algorithm ed25519 -out key.pem"
    content = _read(path, f"the signing key {path}")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except Exception as error:  # the library raises ValueError, TypeError and errors of its own for what is no such key
        raise RequestError(f"{path} is no private key", found=_first_line(error), expected=expected, run=run) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise RequestError(f"{path} cannot sign a bundle", found=_kind(key), expected=expected, run=run)
    return key


def _public(key: PublicKey) -> "Ed25519PublicKey":
    _require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    text = key.encode() if isinstance(key, str) else key
    if isinstance(text, bytes) and text.lstrip().startswith(PEM):
        shown, content = "the public key", text
    else:
        path = Path(key.decode(errors="surrogateescape") if isinstance(key, bytes) else key)
        shown, content = f"the public key {path}", _read(path, f"the public key {path}")
    expected = "PEM text of an Ed25519 public key, or the path of a file with it"
    run = "openssl pkey -in key.pem -pubout -out public.pem"
    try:
        loaded = serialization.load_pem_public_key(content)
    except Exception as error:  # see _private
        found = "a private key" if b"PRIVATE KEY" in content else _first_line(error)
        raise RequestError(f"{shown} is none", found=found, expected=expected, run=run) from error
    if not isinstance(loaded, ed25519.Ed25519PublicKey):
        raise RequestError(f"{shown} cannot verify a bundle", found=_kind(loaded), expected=expected, run=run)
    return loaded


def _require_library() -> None:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "signatures of bundles need the package cryptography", found=f"{type(error).__name__}: {error}",
            expected="the extra sign of this package", run="pip install cryptography",
        ) from error  # fmt: skip


def _read(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{shown} cannot be read", found=reason, expected="a PEM file") from error


def _kind(key: object) -> str:
    return f"a key of kind {type(key).__name__.lstrip('_').removesuffix('PrivateKey').removesuffix('PublicKey')}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
