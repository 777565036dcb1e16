from __future__ import annotations

import math

import numpy as np
from PIL import Image

from dinodomain.show.curves import draw_curves


def rows(count):
    return [
        {
            "step": step,
            "loss": 3.0 / (step + 1),
            "loss_dino": 2.0,
            "teacher_entropy": 1.0,
            "kl_to_uniform": 2.0,
            "feature_std": 0.5,
            "lr": 1e-3,
            "bucket": "a",
        }
        for step in range(count)
    ]


def test_each_panel_with_data_becomes_one_png(tmp_path):
    files = draw_curves(rows(5), tmp_path / "figures")
    assert [file.name for file in files] == ["loss.png", "entropy.png", "feature_std.png", "lr.png"]
    for file in files:
        with Image.open(file) as image:
            assert np.asarray(image.convert("L")).std() > 1


def test_equal_rows_give_equal_bytes_and_nan_is_left_out(tmp_path):
    held = rows(4)
    held[2] = {**held[2], "loss": math.nan, "skipped": 1}
    first, second = (draw_curves(held, tmp_path / name)[0].read_bytes() for name in "ab")
    assert first == second


def test_no_rows_give_no_figures(tmp_path):
    assert draw_curves([], tmp_path / "figures") == []
