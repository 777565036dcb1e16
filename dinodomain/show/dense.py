"""Dense features as pictures: principal components as colours, attention of the class token, similarity to one patch.

Takes arrays, writes PNG files. Pictures show what the features hold together; they prove no learning.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import require
from dinodomain.lineage import write_bytes


def pca_colours(tokens: np.ndarray) -> np.ndarray:
    """The three leading principal components of all tokens together, each stretched to 0..1 between its 1st and 99th percentile.

    Args:
        tokens: [n, gy, gx, E] patch tokens.

    Returns:
        [n, gy, gx, 3] float in 0..1. Signs are fixed by the largest loading, so that equal tokens give equal colours.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, _, axes = np.linalg.svd(flat.T @ flat)
    axes = axes[:3]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    scores = flat @ axes.T
    low, high = np.percentile(scores, [1, 99], axis=0)
    colours: np.ndarray = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*tokens.shape[:-1], -1)
    return colours


def similarity(tokens: np.ndarray, image: int, place: tuple[int, int]) -> np.ndarray:
    """Cosine of every patch of every image to one patch.

    Args:
        tokens: [n, gy, gx, E].
        image: Which image holds the patch.
        place: Its row and column on the token grid.

    Returns:
        [n, gy, gx] in -1..1.
    """
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    cosines: np.ndarray = unit @ unit[image, place[0], place[1]]
    return cosines


def draw_dense(pictures: np.ndarray, tokens: np.ndarray, attention: np.ndarray, path: Path, *, title: str, notice: str = "") -> None:
    """One row per image: picture, PCA colours, attention of the class token (mean over heads).

    Args:
        pictures: [n, Y, X, 3] in 0..1.
        tokens: [n, gy, gx, E].
        attention: [n, heads, gy, gx].
        path: PNG to write.
        title: Title of the figure.
        notice: Printed below, for example that the data are made up.
    """
    colours = pca_colours(tokens)
    columns = [("image", pictures, None), ("PCA of patch tokens", colours, None), ("class attention", attention.mean(axis=1), "magma")]
    _grid(columns, path, title=title, notice=notice)


def draw_similarity(
    pictures: np.ndarray, tokens: np.ndarray, places: Sequence[tuple[int, int, int]], path: Path, *, title: str, notice: str = ""
) -> None:
    """One row per chosen patch: the image it lies in, and cosine maps of all images to it.

    Args:
        pictures: [n, Y, X, 3] in 0..1.
        tokens: [n, gy, gx, E].
        places: (image, row, column) of each chosen patch.
        path: PNG to write.
        title: Title of the figure.
        notice: Printed below.
    """
    figures = require("matplotlib.figure", extra="all", wanted_by="figures")
    figure = figures.Figure(figsize=(1.7 * (len(pictures) + 1), 1.9 * len(places) + 0.7), dpi=110, layout="constrained")
    axes = figure.subplots(len(places), len(pictures) + 1, squeeze=False)
    scale = pictures.shape[1] / tokens.shape[1], pictures.shape[2] / tokens.shape[2]
    for line, (image, row, column) in enumerate(places):
        _picture(axes[line, 0], pictures[image], "chosen patch" if line == 0 else "")
        axes[line, 0].plot((column + 0.5) * scale[1] - 0.5, (row + 0.5) * scale[0] - 0.5, "o", ms=7, mfc="none", mec="red", mew=2)
        for number, cosines in enumerate(similarity(tokens, image, (row, column))):
            _picture(axes[line, number + 1], cosines, f"image {number}" if line == 0 else "", cmap="viridis", vmin=-0.2, vmax=1.0)
    _finish(figure, path, title, notice)


def _grid(columns: Sequence[tuple[str, np.ndarray, str | None]], path: Path, *, title: str, notice: str) -> None:
    figures = require("matplotlib.figure", extra="all", wanted_by="figures")
    count = len(columns[0][1])
    figure = figures.Figure(figsize=(2.1 * len(columns), 2.05 * count + 0.7), dpi=110, layout="constrained")
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (name, images, colours) in enumerate(columns):
        for row in range(count):
            _picture(axes[row, column], images[row], name if row == 0 else "", **({} if colours is None else {"cmap": colours}))
    _finish(figure, path, title, notice)


def _picture(axes: Any, image: np.ndarray, name: str, **options: Any) -> None:
    axes.imshow(image, interpolation="nearest", **options)
    axes.set_title(name, fontsize=8)
    axes.set_axis_off()


def _finish(figure: Any, path: Path, title: str, notice: str) -> None:
    figure.suptitle(title, fontsize=10)
    if notice:
        figure.supxlabel(notice, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
