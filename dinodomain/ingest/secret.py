"""The secret that pseudonyms and the audit holdout hang on: it lies beside a store, never in it.

A personal domain gets 32 random bytes of its own (or a file that several stores share). Elsewhere ids are public, so a
fixed key is used unless a file is given: two stores of the same ground then hold out the same cells, on any machine.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from pathlib import Path

from dinodomain.errors import UserError
from dinodomain.lineage import fingerprint, sync_folder

PUBLIC_KEY = b"dinodomain: ids are public here"
_MIN_BYTES = 16
_log = logging.getLogger(__name__)


def private_folder(store: Path) -> Path:
    """Where the secret and clear names of a store lie: beside it, never in it."""
    return store.with_name(store.name + ".private")


def secret_file(store: Path) -> Path:
    """Default place of a store's secret."""
    return private_folder(store) / "secret"


def read_secret(path: Path, place: str = "ingest.secret") -> bytes:
    """Reads a secret: the file's text without surrounding blanks.

    Raises:
        UserError: There is no such file, or it is too short to be a secret.
    """
    try:
        data = path.read_bytes().strip()
    except OSError as error:
        raise UserError(
            place, f"cannot read the secret {str(path)!r}: {error.strerror}", remedy="give the file the store was made with"
        ) from None
    if len(data) < _MIN_BYTES:
        raise UserError(place, f"{str(path)!r} holds {len(data)} bytes", allowed=f"at least {_MIN_BYTES}", remedy="openssl rand -hex 32")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        _log.warning("%s: others can read the secret; run chmod 600 on it", path)
    return data


def make_secret(path: Path) -> bytes:
    """Makes a new secret of 256 bits, readable by its owner only; whole or not at all.

    Where another process was first, theirs is the one: jobs that start side by side agree.
    """
    data = secrets.token_hex(32).encode()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    try:
        _keep_first(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return read_secret(path)


def _keep_first(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if not path.exists():  # a file system without hard links
            os.replace(temporary, path)


def find_secret(store: Path, given: str | None, *, personal: bool, known: str | None) -> bytes | None:
    """The secret that a store is, or will be, made with.

    Args:
        store: Folder of the store.
        given: File named by the user, or None.
        personal: Whether the domain's ids identify people.
        known: Fingerprint kept by an existing store, or None.

    Returns:
        The secret; None where a new one has yet to be made.

    Raises:
        UserError: The store exists and this is not its secret, or its secret is missing.
    """
    path = secret_file(store)
    if given is not None:
        found: bytes | None = read_secret(Path(given))
    elif path.exists():
        found = read_secret(path)
    else:
        found = None if personal else PUBLIC_KEY
    if known is not None:
        _check(store, found, known)
    return found


def _check(store: Path, found: bytes | None, known: str) -> None:
    if found is None:
        raise UserError(
            "ingest.secret", f"the secret of {str(store)!r} is missing", remedy=f"set it to the file, or put it at {secret_file(store)}"
        )
    if fingerprint(found) != known:
        problem = f"is not the one {str(store)!r} was made with (fingerprint {fingerprint(found)}, wanted {known})"
        raise UserError("ingest.secret", problem, remedy="give the secret of that store, or make a new store")
