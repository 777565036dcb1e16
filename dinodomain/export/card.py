"""The model card that travels with an export: what it takes, what shaped it, how to load it. Facts only, from spec and lineage."""

from __future__ import annotations

from collections.abc import Mapping

from dinodomain.export.inputs import input_facts, window_lines
from dinodomain.lineage import Json
from dinodomain.model import Backbone, ModelPlan
from dinodomain.types import Normalisation
from dinodomain.views.normalise import input_channels

_LIMITS = """## What this card does not say

It says nothing itself about who is served worse, what the features leak or where the backbone fails: that is for the report of an audit of
this very checkpoint. No absence of bias or leakage is claimed.
"""


def model_card(backbone: Backbone, provenance: Mapping[str, Json], load: str, *, takes_stored: bool = False) -> str:
    """Markdown with a Hugging Face metadata head.

    Args:
        backbone: What is exported.
        provenance: Its lineage record.
        load: The line of Python that loads it.
        takes_stored: Whether the export makes the network's channels from the stored ones itself.
    """
    plan, numbers = backbone.vit.plan, backbone.normalisation
    counts = provenance.get("counts", {})
    rows = "\n".join(
        f"| {fact['name']} | {fact['source']} | {fact['unit'] or 'not recorded'} | {low:g} | {high:g} | {mean:g} | {std:g} |"
        for fact, low, high, mean, std in zip(input_facts(numbers), numbers.low, numbers.high, numbers.mean, numbers.std)
    )
    shaped = "\n".join(f"- {name}: {_short(value)}" for name, value in sorted(counts.items())) or "- not recorded"
    return f"""---
library_name: dinodomain
tags: [self-supervised, dino, {backbone.domain}]
---
# Backbone for domain `{backbone.domain}`

Vision transformer, {backbone.ndim}-D, width {plan.dim}, depth {plan.depth}, {plan.heads} heads, {plan.mlp} MLP,
patch {"x".join(map(str, backbone.patch))}, {plan.registers} registers, {_position_note(plan)},
pretrained at {"x".join(map(str, backbone.image_size))} pixels.

## Load

```python
{load}
```

## Input

Normalisation mode `{numbers.mode}`: unit = clip((value - low) / (high - low), 0, 1), network = (unit - mean) / std.
{_mode_note(numbers.mode)}{_spacing_note(plan)}
{_window_note(numbers, takes_stored=takes_stored)}
| channel | stored channel | unit | low | high | mean | std |
|---|---|---|---|---|---|---|
{rows}

## What shaped it

{shaped}
- lineage digest: {provenance.get("digest", "not recorded")}

The whole record lies in `lineage.json`.

{_audit_note(provenance.get("plan", {}))}{_LIMITS}"""


def _audit_note(plan: Mapping[str, Json]) -> str:
    """The audit or waiver that an export carries; empty where a card is made of something else."""
    if "waived" in plan:
        waived = plan["waived"]
        return f"## Audit\n\n**Not audited.** Waived by {waived['owner']}: {waived['reason']}.\n\n"
    if "audit" not in plan:
        return ""
    found = plan["audit"]
    counts = "\n".join(f"- {verdict.replace('_', ' ')}: {count}" for verdict, count in found["verdicts"].items())
    open_ = f"\nNot or only partly answered: {', '.join(found['not_answered'])}." if found["not_answered"] else ""
    return f"""## Audit

This very checkpoint was audited on {found["created"][:10]} (audit `{found["audit_id"][:12]}`, audit.json sha256 `{found["sha256"]}`).
Gate: {found["gate"]}

{counts}
{open_}

"""


def _position_note(plan: ModelPlan) -> str:
    if plan.position != "rope":
        return f"{plan.position} positions"
    unit = {"crop": "half sides of the crop", "patch": "patches", "physical": "mm or m"}[plan.rope_unit]
    return f"rotary positions in {unit} (base {plan.rope_base:g})"


def _spacing_note(plan: ModelPlan) -> str:
    """What a network in physical units takes beside pixels, on a line of its own; empty where it takes nothing."""
    if plan.rope_unit != "physical":
        return ""
    return "\nBeside pixels it takes the pixel size of every image along each axis, in the unit of training (mm or m)."


def _mode_note(mode: str) -> str:
    if mode == "source":
        return "low and high are each source's own 0.5 and 99.5 percentiles of valid pixels, so the table's low and high are not used."
    return "low and high are in the channel's physical unit."


def _window_note(numbers: Normalisation, *, takes_stored: bool) -> str:
    """How stored channels become the network's, where these are display windows; empty where they are the same."""
    windows = window_lines(numbers)
    if not windows:
        return ""
    stored = ", ".join(input_channels(numbers))
    taken = (
        f"The program takes the stored channels ({stored}) in their units and makes the network's {len(numbers.channels)} itself."
        if takes_stored
        else f"Whoever feeds the network makes its {len(numbers.channels)} channels from the stored ones ({stored}), in this order."
    )
    return "\n".join(["", f"The network sees display windows of stored channels. {taken}", "", *(f"- {line}" for line in windows), ""])


def _short(value: Json) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
