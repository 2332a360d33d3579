"""Numbers that tell kinds of pictures apart, made by hand: colour, grey levels, border, lines, letters, texture.

The invariant: a picture is first brought to one size, so that its numbers depend on what it shows and hardly on how
large it was stored; every number is finite, also for a picture of one pixel.

>>> len(features(np.zeros((40, 60), np.uint8))) == len(names())
True
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from transforms.decoded import Pixels

SIDE = 320
"""Longer side, in pixels, to which a picture is brought."""

Array = npt.NDArray[np.float32]
Numbers = Iterator[tuple[str, float]]


def features(pixels: Pixels) -> npt.NDArray[np.float64]:
    """The numbers of a picture in the order of `names()`."""
    return np.array([value for _, value in _named(pixels)])


def _named(pixels: Pixels) -> Numbers:
    rgb = _sized(pixels)
    grey: Array = 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]
    yield from _colours(rgb)
    yield from _greys(grey)
    yield from _border(grey)
    yield from _edges(grey)
    yield from _lines(grey)
    yield from _letters(grey)
    yield from _texture(grey)
    yield from _frequencies(grey)


def _sized(pixels: Pixels) -> Array:
    """RGB, 0 to 1, the longer side SIDE, the shorter at least 8 pixels."""
    image = Image.fromarray(pixels).convert("RGB")
    scale = SIDE / max(image.size)
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    shrunk = image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    return np.asarray(shrunk, np.float32) / np.float32(255)


def _colours(rgb: Array) -> Numbers:
    red, green, blue = (np.ascontiguousarray(rgb[..., channel]) for channel in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    chroma = brightest - np.minimum(np.minimum(red, green), blue)
    yield "chroma", float(chroma.mean())
    for least in (0.08, 0.25, 0.5):
        yield f"coloured:{least}", float((chroma > least).mean())
    yield "coloured:dark", float(((chroma > 0.15) & (brightest < 0.5)).mean())
    for name, plane in (("warm", red - green), ("yellow", (red + green) / 2 - blue)):
        yield f"{name}:mean", float(plane.mean())
        yield f"{name}:std", float(plane.std())
    coloured = chroma > 0.08
    share = float(coloured.mean())
    for name, plane in (("red", red), ("green", green), ("blue", blue)):
        leads = float((coloured & (plane >= brightest)).mean())
        yield f"leads:{name}", leads
        yield f"leads:{name}:share", leads / share if share > 0.02 else 0.0
    codes = sum((plane * 15.99).astype(np.int32) << shift for plane, shift in ((red, 8), (green, 4), (blue, 0)))
    shares = np.sort(np.bincount(np.ravel(codes), minlength=4096))[::-1] / red.size
    for count in (1, 2, 4, 12):
        yield f"top colours:{count}", float(shares[:count].sum())
    yield "colours", float(np.log1p((shares > 5e-4).sum()))


def _greys(grey: Array) -> Numbers:
    counts = np.bincount((grey * 255 + 0.5).astype(np.int32).ravel(), minlength=256)[:256] / grey.size
    yield from ((f"grey:{start}", float(counts[start : start + 32].sum())) for start in range(0, 256, 32))
    some = counts[counts > 0]
    yield "entropy", float(-(some * np.log2(some)).sum())
    yield "levels", float((counts > 2e-4).sum() / 256)
    yield "black", float(counts[:8].sum())
    yield "white", float(counts[248:].sum())
    yield "peak", float(counts.max())
    mean, std = float(grey.mean()), float(grey.std())
    off = (grey - mean) / max(std, 0.02)
    yield "mean", mean
    yield "std", std
    yield "skew", float(np.clip((off * off * off).mean(), -5, 5))


def _border(grey: Array) -> Numbers:
    height, width = grey.shape
    y, x = max(1, height // 40), max(1, width // 40)
    strips = [grey[:y].ravel(), grey[-y:].ravel(), grey[:, :x].ravel(), grey[:, -x:].ravel()]
    border = np.concatenate(strips)
    yield "border:mean", float(border.mean())
    yield "border:std", float(border.std())
    yield "border:black", float((border < 0.06).mean())
    yield "border:white", float((border > 0.96).mean())
    yield "border:sides", float(np.std([strip.mean() for strip in strips]))
    q, r = max(1, height // 6), max(1, width // 6)
    corners = [grey[:q, :r], grey[:q, -r:], grey[-q:, :r], grey[-q:, -r:]]
    means = [float(corner.mean()) for corner in corners]
    middle = float(grey[height // 3 : height - height // 3, width // 3 : width - width // 3].mean())
    yield "corners:darkest", min(means)
    yield "corners:brightest", max(means)
    yield "middle - corners", middle - sum(means) / 4
    yield "lower - upper corners", (means[2] + means[3] - means[0] - means[1]) / 2
    yield "corners:flat", float(np.mean([corner.std() < 0.02 for corner in corners]))
    spread = max(float(grey.var()), 1e-4)
    yield "mirror", float(((grey - grey.mean()) * (grey[:, ::-1] - grey.mean())).mean() / spread)


def _edges(grey: Array) -> Numbers:
    from scipy import ndimage

    down, across = ndimage.sobel(grey, axis=0) / 4, ndimage.sobel(grey, axis=1) / 4
    strength = np.hypot(down, across)
    yield "edge:mean", float(strength.mean())
    for least in (0.02, 0.08, 0.25, 0.6):
        yield f"edge:{least}", float((strength > least).mean())
    strong = strength > 0.08
    total = max(int(strong.sum()), 1)
    flat = np.minimum(np.abs(down), np.abs(across)) < 0.06 * strength
    yield "edge:upright", float((strong & flat).sum() / total)
    yield "edge:level", float((strong & flat & (np.abs(down) > np.abs(across))).sum() / total)
    yield "edge:sharp", float((strength > 0.25).sum() / total)


def _lines(grey: Array) -> Numbers:
    """Long straight runs of ink along rows and columns: axes, frames, rules of tables, arms of flowcharts."""
    from scipy import ndimage

    paper = float(np.median(grey))
    ink = np.abs(grey - paper) > 0.2
    yield "ink", float(ink.mean())
    for name, axis in (("across", 1), ("down", 0)):
        thin = ink & ~ndimage.binary_opening(ink, np.ones((5, 1) if axis == 1 else (1, 5)))
        for share in (0.1, 0.3, 0.7):
            length = max(3, int(share * ink.shape[axis]))
            runs = ndimage.uniform_filter1d(thin.astype(np.float32), length, axis=axis, mode="constant") > 0.97
            yield f"lines:{name}:{share}", float(np.log1p(runs.any(axis=axis).sum()))
    rows = ink.mean(axis=1)
    yield "rows:empty", float((rows < 0.005).mean())
    yield "columns:empty", float((ink.mean(axis=0) < 0.005).mean())
    yield "rows:changes", float(np.log1p((np.diff((rows > 0.01).astype(int)) != 0).sum()))


def _letters(grey: Array) -> Numbers:
    """Small separate marks of about one height on an even ground."""
    from scipy import ndimage

    for name, sign in (("dark", -1), ("light", 1)):
        ground = ndimage.uniform_filter(grey, 25)
        marks = sign * (grey - ground) > 0.12
        labels, count = ndimage.label(marks)
        heights, widths, tops = (
            np.array(
                [[p[0].stop - p[0].start, p[1].stop - p[1].start, p[0].start] for p in ndimage.find_objects(labels)],
                int,
            ).reshape(-1, 3).T
        )
        small = (heights >= 2) & (heights <= 16) & (widths >= 1) & (widths <= 20)
        yield f"marks:{name}", float(np.log1p(count))
        yield f"letters:{name}", float(np.log1p(small.sum()))
        yield f"letters:{name}:share", float(small.sum() / max(count, 1))
        area = float((heights[small] * widths[small]).sum() / grey.size)
        yield f"letters:{name}:area", area
        bottoms = np.bincount((tops + heights)[small], minlength=1)
        yield f"letters:{name}:aligned", float((bottoms.astype(float) ** 2).sum() / max(small.sum(), 1) ** 1.5)
        yield f"letters:{name}:height", float(np.median(heights[small])) if small.any() else 0.0
        sizes = np.sqrt(heights * widths)
        yield f"marks:{name}:large", float(np.log1p((sizes > 24).sum()))


def _texture(grey: Array) -> Numbers:
    from scipy import ndimage

    for size in (3, 9):
        mean = ndimage.uniform_filter(grey, size)
        std = np.sqrt(np.maximum(ndimage.uniform_filter(grey * grey, size) - mean * mean, 0))
        for low, high in pairwise((0.0, 0.004, 0.015, 0.04, 0.1)):
            yield f"rough{size}:{low}", float(((std >= low) & (std < high)).mean())
        shown = (mean > 0.08) & (mean < 0.92)
        part = std[shown] if shown.sum() > 50 else std.ravel()
        yield f"rough{size}:median", float(np.median(part))
        yield f"rough{size}:spread", float(np.quantile(part, 0.9) - np.quantile(part, 0.1))
        if size == 3:
            yield "shown", float(shown.mean())
            yield "speckle", float(np.median(std[shown] / mean[shown])) if shown.sum() > 50 else 0.0
    for step in (1, 3):
        yield from _patterns(ndimage.uniform_filter(grey, step)[::step, ::step], step)


def _patterns(grey: Array, step: int) -> Numbers:
    """Rotation-invariant local binary patterns by number of brighter neighbours (Ojala, IEEE PAMI 24:971, 2002)."""
    inner = grey[1:-1, 1:-1]
    around = [
        grey[1 + y : grey.shape[0] - 1 + y, 1 + x : grey.shape[1] - 1 + x] > inner + 0.01
        for y, x in ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
    ]
    brighter = np.sum(around, axis=0)
    changes = np.sum([a != b for a, b in zip(around, around[1:] + around[:1], strict=True)], axis=0)
    code = np.where(changes <= 2, brighter, 9)
    shares = np.bincount(code.ravel(), minlength=10) / max(code.size, 1)
    yield from ((f"pattern{step}:{number}", float(share)) for number, share in enumerate(shares))


def _frequencies(grey: Array) -> Numbers:
    """Share of the energy in rings of the power spectrum, and how it prefers the axes."""
    height, width = grey.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    energy = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    radius = np.hypot(y, x)
    total = max(float(energy.sum()), 1e-9)
    for low, high in pairwise((0.0, 0.01, 0.03, 0.08, 0.16, 0.28, 0.5)):
        ring = float(energy[(radius >= low) & (radius < high)].sum()) / total
        yield f"ring:{low}", float(np.log10(ring + 1e-7))
    high_part = radius > 0.05
    upright = (np.abs(x) < 0.01) | (np.abs(y) < 0.01)
    yield "axes", float(energy[high_part & upright].sum() / max(float(energy[high_part].sum()), 1e-9))


@cache
def names() -> tuple[str, ...]:
    """What the numbers are, in their order."""
    return tuple(name for name, _ in _named(np.zeros((1, 1), np.uint8)))
