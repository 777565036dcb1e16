"""What to export, in which format, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dinodomain.lineage import Json

Format = Literal["timm", "safetensors", "torch_export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Writes a teacher backbone for other people's pipelines.

    Attributes:
        checkpoint: A run, a checkpoint folder or an exported backbone.
        out: Folder to write; it gets weights, config, a model card and the lineage.
        format: ``timm`` (2-D; ``timm.create_model`` loads it), ``torch_export`` (2-D and 3-D; torch alone loads it), or
            ``safetensors`` (this package).
        overwrite: Replace an export that is already there.
        audit: Folder or ``audit.json`` of an audit of this very checkpoint; none takes the latest one that the run itself remembers.
        waive_audit: ``reason; owner`` of whoever answers for an export without an audit; both are written into it.
    """

    checkpoint: str
    out: str
    format: Format = "timm"
    overwrite: bool = False
    audit: str | None = None
    waive_audit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export.

    Attributes:
        out: Its folder.
        format: Its format.
        files: File names it holds.
        max_abs_diff: Largest absolute difference between our tokens and those of the reloaded export on the same input.
        load: The line of Python that loads it.
        windows: What each channel of the network is that is a display window of a stored channel, one line each.
        audited: The audit or the waiver that it carries, in one line.
    """

    out: str
    format: Format
    files: tuple[str, ...]
    max_abs_diff: float
    load: str
    windows: tuple[str, ...] = ()
    audited: str = ""

    def text(self) -> str:
        """What the command prints."""
        return (
            f"exported to {self.out} ({', '.join(self.files)})\n"
            f"reloaded and compared on the same input: max abs diff {self.max_abs_diff:.3g}\n"
            f"{self.audited}\n"
            f"load it with: {self.load}" + "".join(f"\n{line}" for line in self._window_text())
        )

    def _window_text(self) -> list[str]:
        """Who has to make the network's channels, where they are display windows."""
        if not self.windows:
            return []
        who = "the program makes them from the stored channels" if self.format == "torch_export" else "make them before the network"
        return [f"its channels are display windows ({who}; see README.md):", *(f"  {line}" for line in self.windows)]

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        return {
            "out": self.out, "format": self.format, "files": list(self.files), "max_abs_diff": self.max_abs_diff, "load": self.load,
            "windows": list(self.windows), "audited": self.audited,
        }  # fmt: skip
