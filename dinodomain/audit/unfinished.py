"""Results of finished checks, kept until the whole audit is through: a rerun after a kill goes on with the first check that is missing.

A result may hold what judges it later, so it is a pickle. Nothing is unpickled but what this very user wrote: each file is sealed with a
key that lies in the user's state folder, and belongs to one audit of the same data, plan, policy and code. Measures nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle

import dinodomain
from dinodomain.audit.evidence import Evidence, Result
from dinodomain.errors import UserError
from dinodomain.ingest.secret import make_secret, read_secret
from dinodomain.lineage import digest, write_bytes

_log = logging.getLogger(__name__)
_SEAL = 32  # bytes of an HMAC-SHA256


class Unfinished:
    """The kept results of one audit.

    Args:
        folder: Of the kept results.
        about: What tells this audit from others, as plain values; the code is added.
    """

    def __init__(self, folder: Path, about: Any) -> None:
        self._folder, self._about = folder, digest([about, code_digest()])

    def results(self, name: str, evidence: Evidence) -> list[Result] | None:
        """What a check gave before, bound to this evidence; None where it has to run.

        Args:
            name: Of the check.
            evidence: What the results may refer to.
        """
        path = self._path(name)
        if not path.exists():
            return None
        found = path.read_bytes()
        seal, body = found[:_SEAL], found[_SEAL:]
        if not hmac.compare_digest(seal, self._seal(name, body)):
            _log.info("audit: %s is of another audit; the check runs again", path)
            return None
        return list(_Reader(io.BytesIO(body), _shared(evidence)).load())

    def keep(self, name: str, results: Sequence[Result], evidence: Evidence) -> None:
        """Writes what a check gave; what the evidence holds is referred to, not copied."""
        stream = io.BytesIO()
        _Writer(stream, _shared(evidence)).dump(list(results))
        body = stream.getvalue()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(self._path(name), self._seal(name, body) + body)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.kept"

    def _seal(self, name: str, body: bytes) -> bytes:
        return hmac.new(user_key(), f"{self._about} {name} ".encode() + body, hashlib.sha256).digest()


class _Writer(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, stream: io.BytesIO, shared: Mapping[str, Any]) -> None:
        super().__init__(stream)
        self._names = {id(value): name for name, value in shared.items()}

    def persistent_id(self, value: Any) -> str | None:
        """The name of what is not copied."""
        return self._names.get(id(value))


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, shared: Mapping[str, Any]) -> None:
        super().__init__(stream)
        self._shared = shared

    def persistent_load(self, name: str) -> Any:
        """What the name stands for now."""
        return self._shared[name]


def _shared(evidence: Evidence) -> dict[str, Any]:
    """What results may refer to, by name: the evidence, its parts, and the arrays of both sets."""
    found: dict[str, Any] = {"evidence": evidence}
    for part in ("data", "probed", "asked", "policy", "record", "observer", "trail"):
        found[part] = getattr(evidence, part)
    for name in ("data", "probed"):
        rows = found[name]
        found |= {f"{name}.features.{kind}": values for kind, values in rows.features.items()}
        found |= {f"{name}.columns.{column}": values for column, values in rows.columns.items()}
        found |= {f"{name}.{part}": getattr(rows, part) for part in ("units", "sources", "content_hash", "holdout", "linked", "numbers")}
    return {name: value for name, value in found.items() if value is not None}


@cache
def code_digest() -> str:
    """sha256 over the package's own source: results of other code are not taken up."""
    total, root = hashlib.sha256(), Path(dinodomain.__file__).parent
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


@cache
def user_key() -> bytes:
    """This user's key, made where there is none.

    Raises:
        UserError: The user's state folder cannot be written.
    """
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dinodomain" / "audit_key"
    try:
        return read_secret(path, "audit") if path.exists() else make_secret(path)
    except OSError as error:
        raise UserError(
            "audit", f"cannot write {str(path)!r}: {error.strerror}", remedy="set XDG_STATE_HOME to a folder of yours"
        ) from None
