"""Job arrays: N jobs, on one machine or many, each stage their share of the sources; a run without ``ingest.shard`` finishes the store.

The share of a source follows from its stored id alone, so it stays the same from run to run, and jobs need not know of each other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One of so many shares.

    Attributes:
        number: From 1.
        count: Number of shares.
        job: Name of the job below ``STORE.partial``; empty where one run does it all and finishes the store.
    """

    number: int = 1
    count: int = 1
    job: str = ""

    @classmethod
    def of(cls, shard: str | None) -> Self:
        """The share of ``I/N`` (checked by the plan); everything if None."""
        if shard is None:
            return cls()
        number, count = map(int, shard.split("/"))
        return cls(number=number, count=count, job=f"{number}-of-{count}")

    def holds(self, stored_id: str) -> bool:
        """Whether a stored id falls into this share."""
        return int.from_bytes(hashlib.sha256(stored_id.encode()).digest()[:8], "big") % self.count == self.number - 1
