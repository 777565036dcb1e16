"""Counts of what sources state, told in few lines however many channels there are."""

from __future__ import annotations

from dinodomain.ingest.tally import Tally, spread_lines


def test_what_every_channel_states_is_one_line():
    tally = Tally()
    for _ in range(3):
        waves = {f"wavelength_nm.nm{nm}": float(nm) for nm in range(400, 624)}
        how = {f"resampling.B{number}": "native" if number < 3 else "replicate 2x2" for number in range(6)}
        tally.add({**waves, **how, "level": "L2A"})
    assert spread_lines(tally.spreads(), 4) == [
        "level: L2A (3)",
        "resampling of 6 channels: native (3): B0, B1, B2; replicate 2x2 (3): B3, B4, B5",
        "wavelength_nm of 224 channels: 400 to 623",
    ]


def test_few_members_keep_a_line_each_and_long_lists_are_shown_by_their_ends():
    tally = Tally()
    tally.add({"gsd_m.VV": 10.0, "gsd_m.VH": 10.0, "bands": tuple(f"nm{nm}" for nm in range(224))})
    lines = spread_lines(tally.spreads(), 8)
    assert lines == ["bands: nm0/nm1/nm2/.../nm223 (224 in all) (1)", "gsd_m.VH: 10 (1)", "gsd_m.VV: 10 (1)"]
