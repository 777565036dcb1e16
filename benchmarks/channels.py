"""The patch embedding that attends over channels against a kernel for each channel: CPU-seconds and peak memory of a forward and backward.

ViT-S/16, 224 pixels, batch 8, float32. Times in turns, medians over rounds; peak resident set above that before the pass, in a fresh
process for every value. ``whole`` is the network with 12 blocks, where only the embedding knows how many channels there are.

    python benchmarks/channels.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from readers.measure import Row, rates, row, show
from torch import Tensor, nn

from dinodomain.lineage import write_json
from dinodomain.model import Band, ModelPlan, VisionTransformer

BATCH, SIDE = 8, 224
CHANNELS = (3, 12, 224)
PAGE = 4096


def network(kind: str, channels: int, depth: int) -> nn.Module:
    """A fresh transformer; ``depth`` 0 leaves its patch embedding alone."""
    torch.manual_seed(0)
    plan = ModelPlan(dim=384, depth=max(depth, 1), heads=6, patch=16, channels=kind)  # type: ignore[arg-type]
    bands = [Band(f"b{place}", 400.0 + 9 * place) for place in range(channels)]
    vit = VisionTransformer(plan, in_channels=channels, ndim=2, image_size=SIDE, bands=bands)
    return vit if depth else vit.patch_embed


def stepper(kind: str, channels: int, depth: int) -> Callable[[int], int]:
    """One forward and backward."""
    net, x = network(kind, channels, depth), torch.randn(BATCH, channels, SIDE, SIDE)

    def step(_: int) -> int:
        found = net(x)
        tokens: Tensor = found if isinstance(found, Tensor) else found.patches
        torch.autograd.backward(tokens.square().mean())
        net.zero_grad()
        return BATCH

    return step


def peak_mib(kind: str, channels: int) -> float:
    """Peak of the resident set above that before, MiB; to be asked in a fresh process."""
    step, statm = stepper(kind, channels, 0), Path("/proc/self/statm")
    before, highest, over = int(statm.read_text().split()[1]), [0], threading.Event()

    def look() -> None:
        while not over.is_set():
            highest[0] = max(highest[0], int(statm.read_text().split()[1]))
            time.sleep(0.0005)

    watcher = threading.Thread(target=look)
    watcher.start()
    step(0)
    over.set()
    watcher.join()
    return (highest[0] - before) * PAGE / 2**20


def measure(channels: int, rounds: int) -> list[Row]:
    """Rows of one number of channels."""
    rows = []
    for measured, depth, turns in (("patch embedding", 0, rounds), ("whole ViT-S/16", 12, max(1, rounds // 3))):
        steps = {kind: stepper(kind, channels, depth) for kind in ("wavelength", "fixed")}
        for step in steps.values():
            step(0)
        found = rates(steps, turns)
        rows.append(row(measured, f"{channels} channels", found["wavelength"], "fixed", found["fixed"], "img/CPU-s"))
    peaks = {kind: [_asked(kind, channels)] for kind in ("wavelength", "fixed")}
    rows.append(row("patch embedding", f"{channels} channels", peaks["wavelength"], "fixed", peaks["fixed"], "MB"))
    return rows


def _asked(kind: str, channels: int) -> float:
    told = subprocess.run([sys.executable, __file__, "--peak", kind, str(channels)], check=True, capture_output=True, text=True)
    return float(told.stdout)


def main() -> None:
    """Prints the table and writes its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak_mib(chosen.peak[0], int(chosen.peak[1])))
        return
    rows: list[Row] = []
    for channels in CHANNELS:
        found = measure(channels, 1 if chosen.quick else 9)
        show(found)
        rows.extend(found)
    if chosen.json:
        write_json(chosen.json, rows)


if __name__ == "__main__":
    main()
