"""What became of every tensor in a warm start: how much of the network was found, how it was fitted, and what was left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dinodomain.lineage import Json, to_json

How = Literal["matched", "adapted", "fresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the network.

    Attributes:
        name: Its name in the transformer.
        parameters: Numbers that it holds.
        how: ``matched`` as it was, ``adapted``, or ``fresh``.
        reason: What was done, or why there was nothing to take; empty where it matched.
        begun: Of an adapted tensor, numbers that nevertheless begin anew.
    """

    name: str
    parameters: int
    how: How
    reason: str = ""
    begun: int = 0

    @property
    def found(self) -> int:
        """Numbers that came from the weights."""
        return 0 if self.how == "fresh" else self.parameters - self.begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The report of a warm start.

    Attributes:
        weights: Where they lay.
        digest: What they are known by.
        licence: What is known of it.
        layout: Whose names they had.
        family: Whose architecture.
        entries: One for each tensor of the network that holds something learned.
        unused: Tensors of the file that went nowhere, with the reason.
        notes: What else a reader should know.
    """

    weights: str
    digest: str
    licence: str
    layout: str
    family: str
    entries: tuple[Entry, ...]
    unused: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Parameters of the backbone."""
        return sum(entry.parameters for entry in self.entries)

    @property
    def found(self) -> int:
        """Parameters that came from the weights, as they were or adapted."""
        return sum(entry.found for entry in self.entries)

    @property
    def share(self) -> float:
        """Found parameters as a share of all."""
        return self.found / self.total

    @property
    def share_of_blocks(self) -> float:
        """Least share of a block's tensors that came from the weights; norms and biases hold few numbers, yet a network needs them.

        LayerScale is left out: weights without it begin with what it is set to.
        """
        found: dict[str, list[bool]] = {}
        for entry in self.entries:
            if entry.name.startswith("blocks.") and not entry.name.endswith(".gamma"):
                found.setdefault(entry.name.split(".")[1], []).append(entry.how != "fresh")
        return min((sum(block) / len(block) for block in found.values()), default=1.0)

    def tensors(self, how: How) -> list[Entry]:
        """Entries of one kind."""
        return [entry for entry in self.entries if entry.how == how]

    def text(self) -> str:
        """For log and terminal: what matched as one line, everything else by name."""
        taken = sum(entry.how != "fresh" for entry in self.entries)
        lines = [
            f"warm start from {self.weights} ({self.layout} layout, {self.family}): {100 * self.share:.2f} % of the backbone's "
            f"{self.total} parameters, {taken} of {len(self.entries)} tensors",
            self._line("matched", self.tensors("matched")),
        ]
        for how in ("adapted", "fresh"):
            for reason, entries in _by_reason(self.tensors(how)).items():
                lines.append(f"{self._line(how, entries)}: {reason}")
        for reason, count in Counter(self.unused.values()).items():
            names = [name for name, why in self.unused.items() if why == reason]
            lines.append(f"  unused: {count} tensors ({_few(names)}): {reason}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes), f"  sha256 {self.digest}; licence: {self.licence}"])

    def _line(self, how: How, entries: list[Entry]) -> str:
        names = "" if how == "matched" else f" ({_few([entry.name for entry in entries])})"
        begun = sum(entry.begun for entry in entries)
        anew = f", {begun} of them fresh" if begun else ""
        return f"  {how}: {len(entries)} tensors, {sum(entry.parameters for entry in entries)} parameters{anew}{names}"

    def as_json(self) -> dict[str, Json]:
        """Plain values, with the totals; numbers of an adapted tensor that begin anew are counted as fresh."""
        body: dict[str, Json] = to_json(self)
        counts = {
            how: {"tensors": len(self.tensors(how)), "parameters": sum(entry.found for entry in self.tensors(how))}
            for how in ("matched", "adapted", "fresh")
        }
        counts["fresh"]["parameters"] = self.total - self.found
        return {**body, "parameters": self.total, "found": self.found, "share": self.share, "counts": counts}


def _by_reason(entries: list[Entry]) -> dict[str, list[Entry]]:
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.reason, []).append(entry)
    return grouped


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
