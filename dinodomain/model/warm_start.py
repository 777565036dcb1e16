"""Warm start: puts weights into a network of ours, tensor by tensor, fitted where needed, with a report that refuses half a start."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.model import adapt
from dinodomain.model.backbone import Backbone, normalisation_of
from dinodomain.model.channels import WavelengthPatchEmbed
from dinodomain.model.coverage import Coverage, Entry
from dinodomain.model.ranges import gaps
from dinodomain.model.vit import VisionTransformer
from dinodomain.model.weights import Weights


def warm_start(backbone: Backbone, weights: Weights, *, inflate: Literal["mean", "cycle"] = "mean", min_coverage: float = 0.95) -> Coverage:
    """Puts weights into a backbone, fitting what does not fit as it is.

    Args:
        backbone: With the plan that ``plan_from_weights`` settled; changed in place, or not at all.
        weights: From ``read_weights``.
        inflate: See ``StartPlan``.
        min_coverage: Least share of the backbone's parameters, and of each block's tensors, that must be found.

    Raises:
        UserError: Fewer were found, what was found is not finite, or the patch embedding is of a kind that cannot be fitted.
    """
    _check_inputs(backbone, weights)
    fitted = _Fitting(backbone, weights, inflate)
    report = fitted.report()
    if min(report.share, report.share_of_blocks) < min_coverage:
        fits = f"{report.share:.4f} of the parameters fit, {report.share_of_blocks:.4f} of the tensors of its poorest block"
        raise UserError(
            "start.min_coverage", f"is {min_coverage}, and of {weights.place} only {fits}:\n{report.text()}",
            remedy="choose weights of this architecture, or accept a start with so many fresh parameters by lowering start.min_coverage",
        )  # fmt: skip
    if any(entry.name == "patch_embed.proj.weight" for entry in report.tensors("fresh")):
        raise UserError("start.weights", f"the patch embedding of {weights.place} does not fit:\n{report.text()}", remedy="choose others")
    bad = [name for name, value in fitted.taken.items() if not bool(value.isfinite().all())]
    if bad:
        raise UserError("start.weights", f"{weights.place} holds NaN or Inf in {', '.join(bad[:4])}", remedy="fetch them again")
    own = backbone.vit.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in fitted.taken.items():
            own[name].copy_(value)
    return report


class _Fitting:
    """Decides for every tensor of a transformer where it comes from; touches none of them."""

    def __init__(self, backbone: Backbone, weights: Weights, inflate: Literal["mean", "cycle"]) -> None:
        self.backbone, self.vit, self.weights, self.inflate = backbone, backbone.vit, weights, inflate
        self.taken: dict[str, Tensor] = {}
        self.entries: list[Entry] = []
        self.used: set[str] = set()
        self.notes: list[str] = []
        self._begun: dict[str, int] = {}
        self._told = self._any_channels()
        for name, tensor in self.vit.state_dict().items():
            self._place(name, tensor)

    def report(self) -> Coverage:
        """What was decided."""
        left = {
            full: _why_left(name, self.vit)
            for name, names in self.weights.renamed.origins.items()
            if name not in self.used
            for full in names
        }
        half = {str(tensor.dtype).removeprefix("torch.") for tensor in self.weights.tensors.values()} - {"float32"}
        stored = [f"stored as {', '.join(sorted(half))}, used as float32"] if half else []
        return Coverage(
            weights=self.weights.place, digest=self.weights.digest, licence=self.weights.licence, layout=self.weights.renamed.layout,
            family=self.weights.renamed.family, entries=tuple(self.entries), unused={**self.weights.renamed.unused, **left},
            notes=(*self.notes, *stored, *self._inputs()),
        )  # fmt: skip

    def _inputs(self) -> list[str]:
        if self.weights.spec is not None:
            told = ", ".join(map(str, gaps(normalisation_of(self.weights.spec), self.backbone.normalisation)))
            return [f"these weights saw other numbers for the same pixels than this run gives: theirs = {told}"] if told else []
        return [
            "published weights saw colours normalised by the mean and deviation of ImageNet; here inputs are normalised by views.normalise"
        ]

    def _place(self, name: str, own: Tensor) -> None:
        if name == "pos_embed" and self.vit.plan.position != "learned":
            return  # computed, not learned
        if name in self._told:
            self.used.add("patch_embed.proj.bias")
            self._take(name, own, self._told[name].expand(own.shape), "set so that equal channels give the response that they gave")
            return
        special = {
            "patch_embed.proj.weight": self._kernel,
            "pos_embed": self._positions,
            "cls_token": self._class,
            "reg_token": self._registers,
        }
        value, why = special.get(name, self._plain)(name, own)
        if value is not None and value.numel() == own.numel() and value.squeeze().shape == own.squeeze().shape:
            self._take(name, own, value, why)
            return
        if value is not None:
            why = f"is {_shape(value)} in the weights, {_shape(own)} here"
        self.used.discard(name)
        self.entries.append(Entry(name=name, parameters=own.numel(), how="fresh", reason=why))

    def _take(self, name: str, own: Tensor, value: Tensor, why: str) -> None:
        self.taken[name] = value.reshape(own.shape)
        begun = self._begun.get(name, 0)
        self.entries.append(Entry(name=name, parameters=own.numel(), how="adapted" if why else "matched", reason=why, begun=begun))

    @torch.no_grad()
    def _any_channels(self) -> dict[str, Tensor]:
        """What a patch embedding that is told its channels takes from one with a kernel for each; nothing where both are alike."""
        embed, tensors = self.vit.patch_embed, self.weights.tensors
        if not isinstance(embed, WavelengthPatchEmbed) or "patch_embed.query" in tensors:
            return {}
        kernel, bias = tensors["patch_embed.proj.weight"].float(), tensors["patch_embed.proj.bias"].float()
        found = adapt.for_any_channels(kernel, bias, embed.channel())
        return {f"patch_embed.{name}": value for name, value in found.items() if name != "proj.weight"}

    def _get(self, name: str) -> Tensor | None:
        found = self.weights.tensors.get(name)
        if found is not None:
            self.used.add(name)
            found = found.float()
        return found

    def _plain(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        if name == "patch_embed.channel.by_name":
            return self._named_rows(name, own)
        found, block = self._get(name), name.rpartition(".attn.")[0] or name.rpartition(".mlp.")[0]
        if found is None:
            return self._absent(name, own)
        if name.endswith(("attn.qkv.weight", "attn.qkv.bias")) and self._turns():
            return adapt.turn_for_volumes(found, self.vit.plan.heads), "rotary pairs of an image, reordered for the three axes of a volume"
        for gain, linear in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            if name.startswith(f"{block}.{linear}.") and self.vit.plan.layer_scale == 0:
                scale = self._get(f"{block}.{gain}")
                if scale is not None:
                    return found * scale.view(-1, *[1] * (found.ndim - 1)), "LayerScale multiplied into it (model.layer_scale=0)"
        return found, ""

    def _absent(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        """What a network without this tensor computes the same with; else nothing."""
        if name.endswith(("qkv.bias", "patch_embed.proj.bias")) and name.replace("bias", "weight") in self.weights.tensors:
            return torch.zeros_like(own), "these weights have no such bias, which is a bias of 0"
        if (
            name.endswith(".gamma")
            and name.replace("ls1.gamma", "norm1.weight").replace("ls2.gamma", "norm2.weight") in self.weights.tensors
        ):
            return torch.ones_like(own), "these weights have no LayerScale, which is a gain of 1"
        if name == "mask_token":
            return None, "these weights have no mask token; only masked images use it"
        return None, "not among the weights"

    def _named_rows(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        """Embeddings of channels by their names; a channel that the weights never saw keeps its fresh one."""
        found, spec = self._get(name), self.weights.spec
        if found is None or spec is None:
            return None, "not among the weights"
        had, wanted = (list(one["vocabulary"]["names"]) for one in (spec, self.backbone.spec))
        if had == wanted:
            return found, ""
        known = [channel for channel in wanted if channel in had]
        self._begun[name] = (len(wanted) - len(known)) * own.shape[1]
        if not known:
            return None, f"none of the channels {', '.join(wanted)} is among those of the weights"
        rows = [found[had.index(channel)] if channel in had else own[place] for place, channel in enumerate(wanted)]
        return torch.stack(rows), f"embeddings of the channels {', '.join(known)}; others begin anew"

    def _turns(self) -> bool:
        return self.vit.plan.position == "rope" and self.vit.ndim == 3 and self.weights.tensors["patch_embed.proj.weight"].ndim == 4

    def _kernel(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        kernel, done = self._get(name), list[str]()
        assert kernel is not None
        kernel = self._by_name(kernel, own, done)
        if self._told:
            done.append(f"the sum of {kernel.shape[1]} kernels, which all channels share")
            kernel = kernel.sum(dim=1, keepdim=True)
        elif kernel.shape[1] != own.shape[1]:
            done.append(f"{kernel.shape[1]} to {own.shape[1]} channels ({self.inflate}; equal channels give the same response)")
            kernel = adapt.fit_channels(kernel, own.shape[1], self.inflate)
        sides = tuple(own.shape[2:])
        if kernel.ndim == own.ndim and tuple(kernel.shape[2:]) != sides:
            done.append(f"patch {_sides(kernel)} to {_sides(own)} (pseudo-inverse resize)")
            kernel = adapt.fit_patch(kernel, sides)
        elif kernel.ndim == 4 and own.ndim == 5:
            if tuple(kernel.shape[2:]) != sides[1:]:
                done.append(f"patch {_sides(kernel)} to {'x'.join(map(str, sides[1:]))} in plane (pseudo-inverse resize)")
                kernel = adapt.fit_patch(kernel, sides[1:])
            done.append(f"repeated over {sides[0]} slices and divided by {sides[0]}; slices that are alike give the same response")
            kernel = adapt.fit_depth(kernel, sides[0])
            self.notes.append(self._depth_note())
        return kernel, "; ".join(done)

    def _by_name(self, kernel: Tensor, own: Tensor, done: list[str]) -> Tensor:
        """Our own weights know their channels by name."""
        if isinstance(self.vit.patch_embed, WavelengthPatchEmbed) or self.weights.spec is None:
            return kernel
        had, wanted = list(self.weights.spec["channels"]), list(self.backbone.channels)
        known = [channel for channel in wanted if channel in had]
        if had == wanted:
            return kernel
        if not known:
            if len(had) == len(wanted):
                done.append(f"channels {', '.join(had)} taken for {', '.join(wanted)} by their place: they share no name")
            return kernel
        if sorted(had) == sorted(wanted):
            done.append("channels put in this run's order")
        else:
            new, scale = [channel for channel in wanted if channel not in had], f", scaled by {len(had)}/{len(wanted)}"
            given = f"; {', '.join(new)} take {'the mean of all' if self.inflate == 'mean' else 'those of others in turn'}" if new else ""
            done.append(f"own kernels of {', '.join(known)}{given}{scale if len(had) != len(wanted) else ''}")
        return adapt.channels_by_name(kernel, had, wanted, self.inflate)

    def _depth_note(self) -> str:
        if self.vit.plan.position != "rope":
            return "all slices of a volume begin with the positions of the image: depth is not told apart until training does"
        width = self.vit.plan.dim // self.vit.plan.heads
        flat, deep = width // 4, width // 6
        return (
            f"rotary positions: of {width // 2} pairs of channels in a head an image turns {flat} by each of its 2 axes, a volume {deep} "
            f"by each of 3; {2 * deep} keep their axis at the nearest frequency, {2 * (flat - deep)} lose it and now tell depth or nothing"
        )

    def _leading(self) -> tuple[Tensor | None, Tensor | None]:
        """Positions of class token and registers [1, k, E], and of patches."""
        positions, leading = self._get("pos_embed"), self.weights.num_leading
        if positions is None:
            return None, None
        positions = positions.reshape(1, -1, positions.shape[-1])
        return positions[:, :leading], positions[:, leading:]

    def _class(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        token, (leading, _) = self._get(name), self._leading()
        if token is None or leading is None or not leading.shape[1] or self.vit.plan.class_position:
            return token, ""
        return token.reshape(1, 1, -1) + leading[:, :1], "its position, a constant, added to it"

    def _registers(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        tokens, (leading, _) = self._get(name), self._leading()
        if tokens is None:
            return None, "these weights have no registers; new ones begin near 0"
        tokens, why = tokens.reshape(1, -1, tokens.shape[-1]), ""
        if leading is not None and leading.shape[1] > 1 and not self.vit.plan.class_position:
            tokens, why = tokens + leading[:, 1:], "their positions, constants, added to them"
        if tokens.shape[1] > own.shape[1]:
            return tokens[:, : own.shape[1]], f"the first {own.shape[1]} of {tokens.shape[1]}; class and patch tokens come out differently"
        if tokens.shape[1] < own.shape[1]:
            return None, f"{own.shape[1]} registers asked for, {tokens.shape[1]} among the weights"
        return tokens, why

    def _positions(self, name: str, own: Tensor) -> tuple[Tensor | None, str]:
        leading, patches = self._leading()
        if leading is None or patches is None:
            return None, "not among the weights"
        old, new, done = self.weights.grid, self.vit.grid, list[str]()
        if old != new:
            done.append(f"grid {'x'.join(map(str, old))} to {'x'.join(map(str, new))}")
            patches = adapt.fit_positions(patches, old, new)
        if not self.vit.plan.class_position:
            return patches, "; ".join(done) or ("without the class token's" if leading.shape[1] else "")
        head = torch.zeros(1, self.vit.num_prefix, patches.shape[-1])
        count = min(leading.shape[1], self.vit.num_prefix)
        head[:, :count] = leading[:, :count]
        if leading.shape[1] != self.vit.num_prefix:
            done.append("registers begin without positions")
        return torch.cat([head, patches], dim=1), "; ".join(done)


def _check_inputs(backbone: Backbone, weights: Weights) -> None:
    """Refuses weights whose patch embedding has no counterpart here: a network that begins blind is no warm start, whatever its share.

    Raises:
        UserError: Weights of volumes for images, or of a network that is told its channels for one with a kernel for each.
    """
    axes, own = weights.tensors["patch_embed.proj.weight"].ndim - 2, backbone.ndim
    if axes > own:
        problem = f"{weights.place} is a network of {axes}-D images, the tiles of this run are {own}-D"
        raise UserError(
            "start.weights", problem, allowed=f"weights of {own}-D images", remedy="begin with others or make a store of volumes"
        )
    told = "patch_embed.query" in weights.tensors
    if told and not isinstance(backbone.vit.patch_embed, WavelengthPatchEmbed):
        problem = f"is fixed, {weights.place} is told its channels and has no kernel for each"
        raise UserError("model.channels", problem, allowed="wavelength", remedy="set model.channels=wavelength or leave it out")


def _why_left(name: str, vit: VisionTransformer) -> str:
    if name.startswith("blocks.") and int(name.split(".")[1]) >= vit.plan.depth:
        return f"a block beyond model.depth={vit.plan.depth}"
    if name == "reg_token":
        return f"model.registers={vit.plan.registers}; class and patch tokens come out differently"
    return "does not fit this network"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _sides(kernel: Tensor) -> str:
    return "x".join(map(str, kernel.shape[2:]))
