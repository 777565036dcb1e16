"""Optimiser state as flat tensors by parameter name, so that it fits safetensors and survives a change of grouping or order.

``exp_avg/backbone.vit.norm.weight`` and so on. Hyper-parameters are not state: they are functions of the step.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from dinodomain.errors import UserError
from dinodomain.parallel import cut_like


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Every tensor the optimiser keeps, named ``<kind>/<parameter name>``; empty before the first step.

    Args:
        optimizer: Optimiser over parameters of ``module``.
        module: Gives the parameters their names.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"optimiser keeps a {type(value).__name__} as {kind!r}"
            tensors[f"{kind}/{name}"] = value
    return tensors


def restore_optimizer(optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Puts tensors of ``optimizer_tensors`` back, on each parameter's device; hyper-parameters stay as they are.

    Raises:
        UserError: A name is unknown or a moment's shape is not its parameter's.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(module.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in order:
            raise UserError(place, f"holds optimiser state for unknown parameter {name!r}", remedy="resume with the plan saved beside it")
        if value.ndim and value.shape != parameters[name].shape:
            raise UserError(
                place,
                f"{key!r} is {tuple(value.shape)}, the parameter has {tuple(parameters[name].shape)}",
                remedy="resume with the plan saved beside it",
            )
        state.setdefault(order.index(name), {})[kind] = cut_like(value, parameters[name])
    # load_state_dict knows where each optimiser wants its step counter (fused: on the device, else on the host).
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
