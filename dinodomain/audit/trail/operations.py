"""View operations that can destroy meaning, read from the recorded view policy. Measures nothing: a task says whether it loses by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPERATIONS: Mapping[str, str] = {
    "flip": "left and right (or north and south) look alike: side of a finding, reversed anatomy",
    "rotation": "orientation: the way up, the direction of shadows and flows",
    "quarter_turns": "orientation: the way up, the direction of shadows and flows",
    "drop_channels": "single bands: what only one of them shows",
    "subset_channels": "single bands: what only one of them shows",
    "solarise": "order of intensities: bright against dark tissue or ground",
    "gain": "absolute intensity: density, reflectance",
    "gamma": "relative intensity: density, reflectance",
    "jitter": "absolute intensity and contrast: density, reflectance",
    "window": "intensities outside the drawn window",
    "bias_field": "slow changes of intensity across the image",
    "haze": "thin clouds and aerosols",
    "shadow": "shadows of clouds and terrain",
    "coarser_pixels": "small objects",
    "thickness": "thin structures along the slice axis",
    "blur": "fine texture",
}
"""Operation of the view policy to what the features are trained not to tell apart; sources: the invariances each one asks for."""


def operations_of(policy: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(operation, its settings, what it may destroy) of a recorded view policy, only those that are on."""
    own = policy.get("policy", policy)
    found = []
    for name, meaning in OPERATIONS.items():
        settings = own.get(name)
        if settings in (None, False, {}, [], 0):
            continue
        found.append((name, _settings(settings), meaning))
    for name, scale in (("global_scale", own.get("global_scale")), ("local_scale", own.get("local_scale"))):
        if scale:
            lost = "objects smaller than the crop leaves out, and absolute size"
            found.append((f"crop ({name})", f"{scale[0]:g} to {scale[1]:g} of the area", lost))
    return found


def _settings(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_settings(item)}" for name, item in sorted(value.items()) if item is not None)
    if isinstance(value, (list, tuple)):
        return " to ".join(_settings(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
