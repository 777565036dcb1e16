"""The gated MLP, recomputed activations and compiled blocks against their plain twins."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch.nn import functional

from dinodomain.model import ModelPlan, VisionTransformer
from dinodomain.model.block import Block, SwiGLU
from dinodomain.types import Acquisition

PLAN = ModelPlan(
    dim=24, depth=2, heads=2, patch=4, registers=1, layer_scale=1.0, init="xavier", mlp="swiglu", mlp_ratio=2.5, position="rope",
    rope_unit="physical", rope_length=20.0, rope_rescale=2.0, drop_path=0.4,
)  # fmt: skip
IMAGES = [torch.randn(4, 1, 16, 16), torch.randn(6, 1, 8, 8)]
ABOUT = [Acquisition(spacing=torch.rand(len(x), 2) + 0.5) for x in IMAGES]


def build(plan: ModelPlan = PLAN) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(plan, in_channels=1, ndim=2, image_size=16).train()
    for token in (vit.cls_token, vit.reg_token, vit.mask_token):  # a norm of nearly nothing would enlarge rounding
        torch.nn.init.normal_(token)
    return vit


def gradients(vit: VisionTransformer, seed: int = 5) -> dict[str, torch.Tensor]:
    """Of a step that draws jitter and stochastic depth, beside what it computes."""
    vit.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    found = vit.forward_many(IMAGES, [torch.rand(4, 16) < 0.3, None], ABOUT)
    torch.cat([part.cls for part in found] + [part.patches.flatten(0, 1) for part in found]).square().sum().backward()
    own = {name: value.grad.clone() for name, value in vit.named_parameters() if value.grad is not None}
    return own | {"tokens": found[1].patches.detach(), "draws": torch.rand(3)}


def test_the_gated_mlp_is_silu_of_the_gate_times_the_value():
    mlp = SwiGLU(24, 60)
    x = torch.randn(5, 24)
    gate, value = (functional.linear(x, mlp.fc1.weight[half], mlp.fc1.bias[half]) for half in (slice(60), slice(60, 120)))
    torch.testing.assert_close(mlp(x), functional.linear(gate / (1 + (-gate).exp()) * value, mlp.fc2.weight, mlp.fc2.bias))
    twin = SwiGLUPacked(24, 120)
    twin.load_state_dict(mlp.state_dict(), strict=True)
    torch.testing.assert_close(mlp(x), twin(x), rtol=0, atol=0)


def test_the_ratio_of_a_gated_mlp_is_that_of_each_half():
    block = Block(PLAN)
    assert (block.mlp.fc1.weight.shape, block.mlp.fc2.weight.shape) == ((120, 24), (24, 60))
    assert Block(replace(PLAN, mlp="gelu")).mlp.fc1.weight.shape == (60, 24)


@pytest.mark.parametrize("half", [False, True])
def test_recomputed_activations_give_bit_equal_gradients_and_draws(half):
    vit = build()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        plain = gradients(vit)
        vit.checkpointing = True
        again = gradients(vit)
        other = gradients(vit, seed=6)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert not torch.equal(plain["tokens"], other["tokens"])


def test_recomputing_keeps_less_for_the_backward_pass():
    kept = []
    for checkpointing in (False, True):
        vit, sizes = build(), []
        vit.checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x):
            vit.forward_many(IMAGES, None, ABOUT)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_recomputing_is_left_out_where_nothing_is_learned():
    vit = build().eval()
    with torch.no_grad():
        plain = vit(IMAGES[0], None, ABOUT[0]).cls
        vit.checkpointing = True
        assert torch.equal(vit(IMAGES[0], None, ABOUT[0]).cls, plain)


# The tracer itself looks at the gradient of a block's input.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_compute_the_same_and_keep_their_names():
    vit = build(replace(PLAN, depth=1))
    twin = copy.deepcopy(vit)
    names = list(vit.state_dict())
    vit.compile_blocks(backend="aot_eager")  # the same capture without minutes of a C++ compiler
    assert list(vit.state_dict()) == names
    assert [name for name, _ in vit.named_parameters()] == [name for name, _ in twin.named_parameters()]
    found, wanted = gradients(vit), gradients(twin)
    assert torch.equal(found["draws"], wanted["draws"]), "compiled or not, the same is drawn"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    twin.load_state_dict(copy.deepcopy(vit).state_dict(), strict=True)
