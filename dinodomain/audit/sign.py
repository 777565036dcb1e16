"""Signs a report with a local key: Ed25519 (RFC 8032) over ``SHA256SUMS``, which names every file of the bundle by its digest.

A signature says that whoever holds the key stood behind these bytes; it says nothing about who that is or whether they are right.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

from dinodomain.errors import UserError, require
from dinodomain.lineage import write_bytes

SIGNATURE: Final = "SHA256SUMS.sig"
PUBLIC: Final = "SHA256SUMS.pub"
_MAKE: Final = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"


def signing_key(key: str) -> Any:
    """Reads a private Ed25519 key in PEM, without a passphrase.

    Raises:
        UserError: The key cannot be used.
    """
    serialization = _serialization()
    private = _load(key, "audit.sign", lambda data: serialization.load_pem_private_key(data, None))
    if not hasattr(private, "sign") or len(getattr(private, "private_bytes_raw", bytes)()) != 32:
        raise UserError("audit.sign", f"{key} holds another kind of key", allowed="an Ed25519 key in PEM", remedy=_MAKE)
    return private


def sign(sums: Path, private: Any) -> tuple[Path, Path]:
    """Signs the sums and puts signature and public key beside them.

    Args:
        sums: ``SHA256SUMS``.
        private: From ``signing_key``.
    """
    serialization = _serialization()
    kinds = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    signature, public = sums.with_name(SIGNATURE), sums.with_name(PUBLIC)
    write_bytes(signature, base64.b64encode(private.sign(sums.read_bytes())) + b"\n")
    write_bytes(public, private.public_key().public_bytes(*kinds))
    return signature, public


def check_signature(sums: Path, key: str | None = None) -> bool:
    """Whether the signature beside the sums is that of the key.

    Args:
        sums: ``SHA256SUMS``.
        key: Public key in PEM; None takes the one beside the sums, which shows only that nothing changed since somebody signed.

    Raises:
        UserError: The key cannot be used.
    """
    serialization = _serialization()
    invalid = require("cryptography.exceptions", extra="audit", wanted_by="audit.verify").InvalidSignature
    public = _load(key or str(sums.with_name(PUBLIC)), "audit.key", serialization.load_pem_public_key)
    try:
        public.verify(base64.b64decode(sums.with_name(SIGNATURE).read_bytes()), sums.read_bytes())
    except (invalid, ValueError):
        return False
    return True


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization", extra="audit", wanted_by="audit.sign")


def _load(path: str, place: str, read: Any) -> Any:
    try:
        return read(Path(path).read_bytes())
    except OSError as error:
        raise UserError(place, f"{path}: {error.strerror}", allowed="an Ed25519 key in PEM", remedy=_MAKE) from None
    except (TypeError, ValueError) as error:
        raise UserError(place, f"{path} is no key: {str(error).splitlines()[0]}", allowed="an Ed25519 key in PEM", remedy=_MAKE) from None
