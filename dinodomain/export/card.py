"""The model card that travels with an export: what it takes, what shaped it, how to load it. Facts only, from spec and lineage."""

from __future__ import annotations

from collections.abc import Mapping

from dinodomain.lineage import Json
from dinodomain.model import Backbone

_LIMITS = """## What this card does not say

It says nothing about who is served worse, what the features leak or where the backbone fails: that is for an audit of this very
checkpoint (`dinodomain audit checkpoint=... store=...`). No absence of bias or leakage is claimed.
"""


def model_card(backbone: Backbone, provenance: Mapping[str, Json], load: str) -> str:
    """Markdown with a Hugging Face metadata head."""
    plan, numbers = backbone.vit.plan, backbone.normalisation
    counts = provenance.get("counts", {})
    rows = "\n".join(
        f"| {name} | {low:g} | {high:g} | {mean:g} | {std:g} |"
        for name, low, high, mean, std in zip(numbers.channels, numbers.low, numbers.high, numbers.mean, numbers.std)
    )
    shaped = "\n".join(f"- {name}: {_short(value)}" for name, value in sorted(counts.items())) or "- not recorded"
    return f"""---
library_name: dinodomain
tags: [self-supervised, dino, {backbone.domain}]
---
# Backbone for domain `{backbone.domain}`

Vision transformer, {backbone.ndim}-D, width {plan.dim}, depth {plan.depth}, {plan.heads} heads, patch {plan.patch},
{plan.registers} registers, pretrained at {"x".join(map(str, backbone.image_size))} pixels.

## Load

```python
{load}
```

## Input

Normalisation mode `{numbers.mode}`: unit = clip((value - low) / (high - low), 0, 1), network = (unit - mean) / std.
{_mode_note(numbers.mode)}

| channel | low | high | mean | std |
|---|---|---|---|---|
{rows}

## What shaped it

{shaped}
- lineage digest: {provenance.get("digest", "not recorded")}

The whole record lies in `lineage.json`.

{_LIMITS}"""


def _mode_note(mode: str) -> str:
    if mode == "source":
        return "low and high are each source's own 0.5 and 99.5 percentiles of valid pixels, so the table's low and high are not used."
    return "low and high are in the channel's physical unit."


def _short(value: Json) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
