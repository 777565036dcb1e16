"""What one accelerator does with the package: views, upload, reading by worker processes, whole training steps.

Times come from device events or from a clock around a synchronised region; medians of rounds. The ceilings (matrix products, copies) are
measured in the same run, so that shares hold on any card. Needs the core packages only.

    python benchmarks/accelerator.py [--quick] [--only views|read|step|small] --json FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinodomain.domain import Jitter, ViewPolicy, linear_to_unit
from dinodomain.engine import EnginePlan, PretrainPlan
from dinodomain.engine.step import train_step
from dinodomain.engine.training import Training
from dinodomain.lineage import write_json
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.model import Backbone, Head, ModelPlan, Pair
from dinodomain.objective import Objective, ObjectivePlan
from dinodomain.optim import OptimPlan, Schedules, make_optimizer, parameter_groups
from dinodomain.store import StorePlan, array_record, build_store
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, matmul, render

Row = dict[str, Any]
PLANE = ViewPolicy(axes=("NS", "EW"), flip={"NS": 0.5, "EW": 0.5}, jitter=Jitter(per_channel=True))
VOLUME = ViewPolicy(axes=("IS", "AP", "LR"), flip={"IS": 0.5, "AP": 0.5, "LR": 0.5})

# (name, tile, dtype, policy, crops, batch, least samples/s with the source on the device)
INPUTS = (
    ("RGB uint8 512^2", (3, 512, 512), torch.uint8, PLANE, ViewsPlan(), 64, 50_000),
    ("12-band uint16 256^2", (12, 256, 256), torch.uint16, PLANE, ViewsPlan(), 64, 30_000),
    ("int16 160^3", (1, 160, 160, 160), torch.int16, VOLUME, ViewsPlan(global_size=96, local_size=48), 16, 15_000),
)
_RGB = ((3, 384, 384), torch.uint8, PLANE, ViewsPlan())
# (name, width, depth, heads, batch, least share of the matmul peak, tile, dtype, policy, crops)
STEPS = (
    ("ViT-S/16", 384, 12, 6, 64, 0.30, *_RGB),
    ("ViT-B/16", 768, 12, 12, 64, 0.35, *_RGB),
    ("ViT-L/16", 1024, 24, 16, 64, 0.40, *_RGB),
    ("ViT-S/16 3-D", 384, 12, 6, 32, 0.30, (1, 128, 128, 128), torch.int16, VOLUME, ViewsPlan(global_size=96, local_size=48)),
)
PROTOTYPES = 65536


def device_seconds(run: Callable[[], object], rounds: int, device: str) -> float:
    """Median seconds of one call, after two to warm up."""
    for _ in range(2):
        run()
    return statistics.median(_seconds(run) if device == "cpu" else _event_seconds(run) for _ in range(rounds))


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _event_seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def row(measure: str, what: str, ours: float, unit: str, *, peer: str = "", peer_value: float | None = None, ratio: float | None = None,
        target: float | None = None, rounds: int) -> Row:  # fmt: skip
    """One line of the table, printed as it comes."""
    found = {"measure": measure, "input": what, "ours": round(ours, 4), "peer": peer, "peer_value": peer_value, "unit": unit,
             "ratio": None if ratio is None else round(ratio, 4), "target": target, "rounds": rounds}  # fmt: skip
    print(json.dumps(found), flush=True)
    return found


def matmul_peak(rounds: int, device: str, side: int) -> float:
    """FLOP/s of a square bf16 product of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / device_seconds(lambda: a @ b, rounds, device)


def made_up(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Numbers of the dtype's usual range; content does not change the speed of views."""
    high = 255 if dtype == torch.uint8 else 4000
    return torch.from_numpy(np.random.default_rng(0).integers(0, high, shape).astype(str(dtype).removeprefix("torch.")))


def batch_of(pixels: torch.Tensor) -> Batch:
    """A batch as the loader gives it, around pixels [B, 1, C, ...]."""
    count, _, channels, *extent = pixels.shape
    device = pixels.device
    ones, ids = torch.ones(count, channels, device=device), torch.arange(count, device=device)
    box = torch.tensor([[0, side] for side in extent], device=device).expand(count, -1, -1)
    info = TileInfo(scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=4000 * ones,
                    spacing=torch.ones(count, len(extent), device=device), valid_box=box)  # fmt: skip
    names = tuple(f"band {i}" for i in range(channels))
    return Batch(pixels=pixels, valid=None, info=info, channels=names, tile_ids=ids, epochs=0 * ids, draws=0 * ids, rows=ids,
                 origins=torch.zeros(count, len(extent), dtype=torch.int64, device=device), slots=ids)  # fmt: skip


def normalisation(channels: int) -> Normalisation:
    names = tuple(f"band {i}" for i in range(channels))
    return Normalisation(mode="domain", channels=names, low=(0.0,) * channels, high=(4000.0,) * channels, mean=(0.5,) * channels,
                         std=(0.25,) * channels)  # fmt: skip


def render_all(batch: Batch, policy: ViewPolicy, plan: ViewsPlan, patch: int = 8) -> object:
    norm = normalisation(len(batch.channels))
    params = draw_batch(policy, plan, batch, seed=0, normalisation=norm)
    return render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=patch)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls that launch something on a device: all but views of tensors and allocations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [item.alias_info for item in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not view and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))


@contextmanager
def products(split: bool) -> Iterator[None]:
    """Views from split TF32 products, or from float32 ones."""
    before, matmul.SPLIT = matmul.SPLIT, split
    try:
        yield
    finally:
        matmul.SPLIT = before


def views(rounds: int, quick: bool, device: str) -> Iterator[Row]:
    """All views of a batch: source on the device, and uploaded from pinned memory while the last batch is rendered; then of a step."""
    for name, shape, dtype, policy, plan, count, target in INPUTS:
        host = made_up((2 if quick else count, 1, *shape), dtype)
        for split in _kinds(device):
            with products(split):
                what = f"{name}, {'split TF32' if split else 'float32'} products"
                yield from _view_rows(what, host, policy, plan, target, rounds, device)
    name, width, depth, heads, count, _, shape, dtype, policy, plan = STEPS[0]
    pixels = made_up((2 if quick else count, 1, *shape), dtype)
    for split in _kinds(device):
        with products(split):
            what = f"{name}, batch {len(pixels)}, {'split TF32' if split else 'float32'} products"
            share, _, _ = _share_of_a_step((width, depth, heads), pixels, policy, plan, rounds, device)
            yield row("views' share of a step", what, share, "", target=0.05, rounds=rounds)


def _kinds(device: str) -> tuple[bool, ...]:
    """Whether products are split: both ways on an accelerator; a CPU never splits."""
    return (False,) if device == "cpu" else (False, True)


def _view_rows(
    name: str, host: torch.Tensor, policy: ViewPolicy, plan: ViewsPlan, target: float, rounds: int, device: str
) -> Iterator[Row]:
    batch, count = batch_of(host.to(device)), len(host)
    alone = device_seconds(lambda: render_all(batch, policy, plan), rounds, device)
    yield row("views, source on the device", name, count / alone, "samples/s", target=target, rounds=rounds)
    with Launches() as launches:
        render_all(batch, policy, plan)
    yield row("launches of a batch of views", name, launches.count, "", rounds=1)
    if device == "cpu":
        return
    issue = statistics.median(_issue_seconds(lambda: render_all(batch, policy, plan)) for _ in range(rounds))
    yield row("host time of a batch of views", name, 1000 * issue, "ms", rounds=rounds)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    render_all(batch, policy, plan)
    yield row("peak memory of a batch of views", name, (torch.cuda.max_memory_allocated() - held) / 2**30, "GiB", rounds=1)
    pinned = host.pin_memory()
    copy = device_seconds(lambda: pinned.to(device, non_blocking=True), rounds, device)
    both = _overlapped(pinned, policy, plan, rounds)
    yield row("views with upload", name, count / both, "samples/s", peer="upload alone", peer_value=round(count / copy, 1),
              ratio=copy / both, target=0.8, rounds=rounds)  # fmt: skip


def _issue_seconds(run: Callable[[], object]) -> float:
    """Until the host has issued everything, on an idle device."""
    torch.cuda.synchronize()
    return _seconds(run)


def _overlapped(pinned: torch.Tensor, policy: ViewPolicy, plan: ViewsPlan, rounds: int) -> float:
    """Seconds per batch when the copy of the next batch runs beside the rendering of this one."""
    stream, turns = torch.cuda.Stream(), 4 * rounds  # type: ignore[no-untyped-call]

    def upload() -> torch.Tensor:
        with torch.cuda.stream(stream):
            return pinned.to("cuda", non_blocking=True)

    def run(count: int) -> None:
        ahead = upload()
        for _ in range(count):
            torch.cuda.current_stream().wait_stream(stream)
            ahead.record_stream(torch.cuda.current_stream())
            here, ahead = ahead, upload()
            render_all(batch_of(here), policy, plan)

    run(3)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    run(turns)
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / turns


def read(rounds: int, quick: bool, device: str) -> Iterator[Row]:
    """Tiles a second from a store on disk into the device's memory (page cache warm), by number of reader processes."""
    scenes, batch = (1, 8) if quick else (12, 64)
    rng = np.random.default_rng(0)
    waves = np.add.outer(np.sin(np.linspace(0, 9, 2048)), np.cos(np.linspace(0, 7, 2048)))
    pixels = [(3000 + 400 * waves + rng.normal(0, 8, (12, 2048, 2048))).astype(np.uint16) for _ in range(scenes)]
    with tempfile.TemporaryDirectory() as folder:
        for codec in ("fast", "none"):
            sources = {f"s{i}": array_record(scene) for i, scene in enumerate(pixels)}
            store = build_store(Path(folder) / codec, sources, domain="bench", plan=StorePlan(codec=codec))
            for workers, threads in ((0, 4), (1, 2), (2, 2), (4, 2), (8, 2)):
                plan = LoaderPlan(batch=batch, workers=workers, threads=threads, prefetch=6)
                rate = statistics.median(_rates(Loader(store, plan, seed=0, device=device), 2 if quick else 12, batch, rounds // 2))
                what = f"12x256x256 uint16, {codec}, {workers} workers x {threads} threads"
                yield row("store to device", what, rate, "tiles/s", rounds=rounds // 2)


def _rates(loader: Loader, steps: int, batch: int, rounds: int) -> Iterator[float]:
    """Tiles a second of each round, after one round to warm up."""
    with closing(iter(loader)) as batches:
        for turn in range(rounds + 1):
            begun = time.perf_counter()
            held = [next(batches).pixels.view(torch.uint8).amax() for _ in range(steps)]  # touches every pixel and keeps none
            if held[-1].is_cuda:
                torch.cuda.synchronize()
            if turn:
                yield steps * batch / (time.perf_counter() - begun)


def training(
    sizes: tuple[int, int, int], batch: int, *, channels: int, ndim: int, plan: ViewsPlan, policy: ViewPolicy, device: str,
    prototypes: int = PROTOTYPES, accumulate: int = 1,
) -> Training:  # fmt: skip
    """A run's objects as ``engine.build`` makes them, without a store."""
    torch.manual_seed(0)
    width, depth, heads = sizes
    model = ModelPlan(dim=width, depth=depth, heads=heads, patch=16, drop_path=0.0)
    run = PretrainPlan(
        domain="bench", store="-", out="-", loader=LoaderPlan(batch=batch), views=plan, model=model, optim=OptimPlan(),
        objective=ObjectivePlan(prototypes=prototypes),
        engine=EnginePlan(steps=10_000, device=device, precision="bf16", accumulate=accumulate),
    )  # fmt: skip
    frozen = normalisation(channels)
    backbone = Backbone.create(model, ndim=ndim, image_size=plan.global_size, normalisation=frozen, domain="bench")
    pair = Pair(backbone, Head(width, prototypes=prototypes, hidden=2048, bottleneck=256, layers=3), masks=True).to(device)
    optimizer = make_optimizer(parameter_groups(pair.student, run.optim), run.optim)
    return Training(
        plan=run, pair=pair, student=pair.student, objective=Objective(run.objective).to(device), optimizer=optimizer, policy=policy,
        schedules=Schedules(run.optim, total_steps=10_000, batch=batch), to_float=linear_to_unit, normalisation=frozen,
    )  # fmt: skip


def flops(width: int, depth: int, plan: ViewsPlan, ndim: int, channels: int) -> float:
    """Floating-point operations of one sample in a step, attention included, elementwise work not.

    Teacher on the global crops; student forward and backward on all. The head sees class tokens and, as the defaults draw them on average,
    30 % of the patches of half of the global crops.
    """

    def encoder(size: int) -> float:
        patches = float((size // 16) ** ndim)
        return (patches + 5) * depth * (24 * width**2 + 4 * (patches + 5) * width) + 2 * patches * width * channels * 16.0**ndim

    large, small = plan.num_global * encoder(plan.global_size), plan.num_local * encoder(plan.local_size)
    head = 2.0 * (width * 2048 + 2048 * 2048 + 2048 * 256 + 256 * PROTOTYPES)
    masked = plan.num_global * float((plan.global_size // 16) ** ndim) * 0.5 * 0.3
    return large + head * (plan.num_global + masked) + 3 * (large + small + head * (plan.num_global + plan.num_local + masked))


def step(rounds: int, quick: bool, device: str) -> Iterator[Row]:
    """Whole steps with views on the device: samples a second, share of the bf16 peak, share of the views, peak memory."""
    peak = matmul_peak(rounds, device, 512 if device == "cpu" else 8192)
    yield row("bf16 matmul peak", "square", peak / 1e12, "TFLOP/s", rounds=rounds)
    for name, width, depth, heads, count, target, shape, dtype, policy, plan in STEPS[::3] if quick else STEPS:
        count = 2 if quick else count
        yield from _step_rows(
            name, (width, depth, heads), count, target, made_up((count, 1, *shape), dtype), policy, plan, rounds, device, peak
        )


def _step_rows(name: str, sizes: tuple[int, int, int], count: int, target: float, pixels: torch.Tensor, policy: ViewPolicy, plan: ViewsPlan,
               rounds: int, device: str, peak: float) -> Iterator[Row]:  # fmt: skip
    ndim = pixels.ndim - 3
    share, seconds, memory = _share_of_a_step(sizes, pixels, policy, plan, rounds, device)
    used = flops(sizes[0], sizes[1], plan, ndim, pixels.shape[2]) * count / seconds
    what = f"{name}, {plan.num_global}x{plan.global_size} + {plan.num_local}x{plan.local_size}, K={PROTOTYPES}, batch {count}"
    yield row("training step", what, count / seconds, "samples/s", peer="matmul peak, TFLOP/s", peer_value=round(peak / 1e12, 1),
              ratio=used / peak, target=target, rounds=rounds)  # fmt: skip
    yield row("views' share of a step", what, share, "", target=0.05, rounds=rounds)
    if device != "cpu":
        yield row("peak memory of a step", what, memory, "GiB", rounds=rounds)


def _share_of_a_step(
    sizes: tuple[int, int, int], pixels: torch.Tensor, policy: ViewPolicy, plan: ViewsPlan, rounds: int, device: str
) -> tuple[float, float, float]:
    """Share of the views in a step, seconds of a step, and its peak memory in GiB (0 on a CPU)."""
    batch = batch_of(pixels.to(device))
    state = training(sizes, len(pixels), channels=pixels.shape[2], ndim=pixels.ndim - 3, plan=plan, policy=policy, device=device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = device_seconds(lambda: train_step(state, batch), rounds, device)
    memory = 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30
    return device_seconds(lambda: render_all(batch, policy, plan, 16), rounds, device) / seconds, seconds, memory


def small(rounds: int, quick: bool, device: str) -> Iterator[Row]:
    """Effective batch 256 on a card of 24 GiB, by a limit on this process: the largest micro-batch that trains, its rate and peak."""
    limit, whole = 24.0, 8 if quick else 256
    if device != "cpu":
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    for name, width, depth, heads, _, _, shape, dtype, policy, plan in (STEPS[1], STEPS[3]):
        for parts in (1, 2, 4, 8, 16, 32):
            found = _capped((width, depth, heads), made_up((whole, 1, *shape), dtype), policy, plan, parts, max(2, rounds // 5), device)
            if found is not None:
                seconds, memory = found
                what = f"{name}, {plan.num_global}x{plan.global_size} + {plan.num_local}x{plan.local_size}, batch {whole}, {limit:g} GiB"
                yield row("largest micro-batch", what, whole / parts, "samples", rounds=1)
                yield row("training step", what, whole / seconds, "samples/s", rounds=rounds)
                yield row("peak memory of a step", what, memory, "GiB", target=limit, rounds=rounds)
                break
    if device != "cpu":
        torch.cuda.set_per_process_memory_fraction(1.0)


def _capped(sizes: tuple[int, int, int], pixels: torch.Tensor, policy: ViewPolicy, plan: ViewsPlan, parts: int, rounds: int,
            device: str) -> tuple[float, float] | None:  # fmt: skip
    """Seconds and GiB of a step in ``parts`` micro-batches; None where memory does not suffice."""
    try:
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        batch = batch_of(pixels.to(device))
        state = training(
            sizes, len(pixels), channels=pixels.shape[2], ndim=pixels.ndim - 3, plan=plan, policy=policy, device=device, accumulate=parts
        )
        seconds = device_seconds(lambda: train_step(state, batch), rounds, device)
    except torch.OutOfMemoryError:
        return None
    return seconds, 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, small batches: shows that it runs, not how fast")
    parser.add_argument("--only", default="", help="views, read, step or small")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the script runs")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("no accelerator here: this benchmark needs one")
    print("cpu" if options.device == "cpu" else torch.cuda.get_device_name(), torch.__version__, flush=True)
    rounds = 2 if options.quick else 15
    parts = {"views": views, "read": read, "step": step, "small": small}
    rows = [found for name, part in parts.items() if options.only in name for found in part(rounds, options.quick, options.device)]
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
