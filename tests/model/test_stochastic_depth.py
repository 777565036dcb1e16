"""How many samples stay is exact in the mean, for few samples too, and the same all through a pass."""

from __future__ import annotations

import pytest
import torch

from dinodomain import parallel
from dinodomain.engine.step import seed_step
from dinodomain.model import ModelPlan, VisionTransformer
from dinodomain.model.block import Block, draw_subset, draw_toss

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "drop"), [(4, 0.1), (2, 0.3), (10, 0.3), (3, 0.5), (1, 0.2)])
def test_the_share_that_stays_is_exact_in_the_mean(count, drop):
    tosses = [(index + 0.5) / 1000 for index in range(1000)]
    kept = [draw_subset(((count, 1),), drop, CPU, toss).layout[0][0] for toss in tosses]
    expected = max(1.0, count * (1 - drop))  # a single sample always stays
    assert sum(kept) / len(kept) == pytest.approx(expected, abs=1.5e-3)
    assert max(kept) - min(kept) <= 1


@pytest.mark.parametrize("toss", [0.0, 0.3, 0.999999])
def test_what_stays_is_enlarged_by_what_is_left_out(toss):
    drawn = draw_subset(((4, 3), (2, 2)), 0.3, CPU, toss)
    for (kept, length), (count, _), gain in zip(drawn.layout, ((4, 3), (2, 2)), drawn.gain.split([k * n for k, n in drawn.layout])):
        torch.testing.assert_close(gain, torch.full((kept * length, 1), count / kept))


def test_all_blocks_of_a_pass_keep_as_many_and_passes_differ(monkeypatch):
    seen, real = [], Block.draw

    def watched(block, layout, device, toss):
        subsets = real(block, layout, device, toss)
        seen[-1].append(tuple(subset.layout for subset in subsets))
        return subsets

    monkeypatch.setattr(Block, "draw", watched)
    vit = VisionTransformer(ModelPlan(dim=16, depth=3, heads=2, patch=8, drop_path=0.1), in_channels=1, ndim=2, image_size=16).train()
    torch.manual_seed(0)
    for _ in range(20):
        seen.append([])
        vit.forward_many([torch.zeros(4, 1, 16, 16), torch.zeros(6, 1, 8, 8)])
    assert all(len(set(layouts)) == 1 and len(layouts) == 3 for layouts in seen)
    assert 2 <= len({layouts[0] for layouts in seen}) <= 3  # few shapes, for whoever compiles


def test_ranks_and_steps_toss_and_draw_for_themselves(monkeypatch):
    def drawn(rank: int, step: int) -> tuple[float, list[int]]:
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        seed_step(7, step)
        return draw_toss(), draw_subset(((50, 1),), 0.5, CPU).rows.tolist()

    first = drawn(0, 3)
    assert drawn(0, 3) == first
    for other in (drawn(1, 3), drawn(0, 4)):
        assert other[0] != first[0]
        assert other[1] != first[1]
