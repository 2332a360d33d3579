"""What is measured on one region: size, shape, intensity and texture.

The invariant: nothing is measured beyond trust. An outline that may be believed gives all of it, a box its own extent,
presence nothing. What a window cut off is no value: a bound has a name of its own (`median_at_least`).

    area, area_share, area_mm2                       px, % of the image, mm2
    long_axis, short_axis, …_mm                      greatest distance of two corners of its pixels, least width between
                                                     two parallel lines (Feret); with mm, in mm along rows and columns
    width, height, …_mm                              of its box
    roundness, solidity                              4 area / (pi long_axis^2); area over that of its convex hull
    components, holes                                pieces (8 neighbours), openings (4 neighbours)
    mean, std, min, max, p10, median, p90            HU of a CT with a known window, else grey 0 to 255
    clipped_low, clipped_high                        % of its pixels that the window shows as 0 and as 255, for HU
    contrast                                         median grey less that of the ring around it
    contrast_hu                                      likewise in HU, where the window clips neither median
    texture, entropy, local_std                      one pixel inside the outline: standard deviation of grey; bits of a
                                                     histogram of 32 bins; root mean variance within 3 x 3
    glcm_contrast, glcm_homogeneity                  of grey in 32 levels, neighbours in all directions (Haralick 1973)
    edge                                             median change of grey per pixel across its outermost pixels
    box_width, box_height, …_mm                      where only the box may be believed

The ring begins one pixel off the outline and is a quarter as wide as the disc of the region's area, 3 to 15 pixels.
HU are those of the stored greys: steps of 1/255 of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from transforms.measures import words
from transforms.measures.picture import DIGITS, Cut, Measure, Measures, Picture, cut
from transforms.measures.told import percent

Floats = npt.NDArray[np.float64]
RING = (3, 15)
"""Least and greatest width of the ring, in pixels."""
LEVELS = 32


def measures_of(picture: Picture, row: Mapping[str, Any]) -> Measures:
    """What may be measured on a row of `rois`."""
    if row["trust"] == "boundary" and row["mask"] is not None:
        region = cut(picture, row)
        inner = eroded(region.mask)
        yield from _size(picture, row, region)
        yield from _intensity(picture, region.grey[region.mask])
        yield from _contrast(picture, region)
        yield from _texture(region.grey, inner)
        yield from _edge(region, inner)
    elif row["trust"] != "presence":
        yield from _box(picture, row)


def _box(picture: Picture, row: Mapping[str, Any], name: str = "box_") -> Measures:
    x0, y0, x1, y1 = row["box"]
    width, height = x1 - x0, y1 - y0
    yield Measure(f"{name}width", width, "px")
    yield Measure(f"{name}height", height, "px")
    if picture.spacing is not None:
        down, across = picture.spacing
        told = None
        if name and picture.in_patient:
            size = words.size(
                width * across, height * down, pixel=max(picture.spacing), cut_off=False, parts=1, where=picture.where
            )
            told = f"within a box of {size}" if size else None
        yield Measure(f"{name}width_mm", _round(width * across), "mm", told)
        yield Measure(f"{name}height_mm", _round(height * down), "mm")


def _size(picture: Picture, row: Mapping[str, Any], region: Cut) -> Measures:
    area: int = int(np.count_nonzero(region.mask))
    parts = pieces(region.mask)
    share, hull = area / picture.grey.size, hull_of(region.mask)
    long, short, hull_area = axes(hull)
    yield Measure("area", area, "px")
    yield Measure("area_share", _round(100 * share), "%", f"{percent(share)} of the image")
    yield from _box(picture, row, "")
    yield Measure("long_axis", _round(long), "px")
    yield Measure("short_axis", _round(short), "px")
    if picture.spacing is not None:
        mm2 = area * picture.spacing[0] * picture.spacing[1]
        long, short, _ = axes(hull * picture.spacing)
        cut_off, where, told = region.at_edge, picture.where, picture.in_patient
        extent = words.area(mm2, area, cut_off=cut_off, where=where)
        pixel = max(picture.spacing)
        size = words.size(long, short, pixel=pixel, cut_off=cut_off, parts=parts, where=where)
        yield Measure("area_mm2", _round(mm2), "mm2", extent if told else None)
        yield Measure("long_axis_mm", _round(long), "mm", size if told else None)
        yield Measure("short_axis_mm", _round(short), "mm")
        area_here = mm2
    else:
        area_here = float(area)
    roundness = 4 * area_here / (np.pi * long**2)
    plain = parts == 1 and area >= words.SHAPED and not region.at_edge
    shape = words.shape(roundness, long, short, area / hull_area) if plain else None
    yield Measure("roundness", _round(roundness), None, shape)
    yield Measure("solidity", _round(area / hull_area))
    yield Measure("components", parts, None, f"in {parts} separate parts" if parts > 1 else None)
    yield Measure("holes", holes(region.mask))


def _intensity(picture: Picture, grey: npt.NDArray[np.uint8]) -> Measures:
    quantiles = np.percentile(grey, (0, 10, 50, 90, 100), method="inverted_cdf")
    named = dict(zip(("min", "p10", "median", "p90", "max"), quantiles.tolist(), strict=True))
    mean, std = float(grey.mean()), float(grey.std())
    if picture.window is None:
        yield Measure("mean", _round(mean), "grey")
        yield Measure("std", _round(std), "grey")
        for name, value in named.items():
            yield Measure(name, value, "grey")
        return
    lower, upper = picture.window
    step = (upper - lower) / 255
    low, high = float((grey == 0).mean()), float((grey == 255).mean())
    yield Measure("clipped_low", _round(100 * low), "%")
    yield Measure("clipped_high", _round(100 * high), "%")
    for name, value in named.items():
        bound = "at most" if value == 0 else "at least" if value == 255 else None
        # grey 0 is all up to half a step above the lower end, and 255 all from half a step below the upper
        shown = lower + step * min(max(value, 0.5), 254.5)
        told = words.hounsfield(shown, step, bound) if name == "median" else None
        yield Measure(name if bound is None else f"{name}_{bound.replace(' ', '_')}", _round(shown), "HU", told)
    if not (low and high):
        name = "mean_at_most" if low else "mean_at_least" if high else "mean"
        yield Measure(name, _round(lower + step * mean + (low - high) * step / 2), "HU")
    if not (low or high):
        yield Measure("std", _round(step * std), "HU")


def _contrast(picture: Picture, region: Cut) -> Measures:
    area = int(np.count_nonzero(region.mask))
    width = int(np.clip(round(0.5 * np.sqrt(area / np.pi)), *RING))
    ring = _grown(region.mask, width + 1) & ~_grown(region.mask, 1)
    around = region.grey[ring]
    if around.size < max(8, area // 20):
        return
    inside = region.grey[region.mask]
    medians = [float(np.percentile(part, 50, method="inverted_cdf")) for part in (inside, around)]
    difference = medians[0] - medians[1]
    told = words.brightness(difference, float(inside.std()), float(around.std()))
    yield Measure("contrast", difference, "grey", told)
    if picture.window is not None and all(0 < median < 255 for median in medians):
        yield Measure("contrast_hu", _round(difference * (picture.window[1] - picture.window[0]) / 255), "HU")


def _texture(grey: npt.NDArray[np.uint8], inner: npt.NDArray[np.bool_]) -> Measures:
    inside = grey[inner]
    if inside.size < words.ENOUGH:
        return
    spread, clipped = float(inside.std()), float(((inside == 0) | (inside == 255)).mean())
    yield Measure("texture", _round(spread), "grey", words.texture(spread, float(inside.mean()), clipped))
    shares = np.bincount(inside >> 3, minlength=LEVELS) / inside.size
    shares = shares[shares > 0]
    yield Measure("entropy", _round(-(shares * np.log2(shares)).sum()))
    yield Measure("local_std", _round(local_std(grey, inner)), "grey")
    contrast, homogeneity = glcm(grey >> 3, inner)
    yield Measure("glcm_contrast", _round(contrast))
    yield Measure("glcm_homogeneity", _round(homogeneity))


def _edge(region: Cut, inner: npt.NDArray[np.bool_]) -> Measures:
    if min(region.grey.shape) < 3:
        return
    change = np.stack([np.gradient(region.grey.astype(np.float64), axis=axis) for axis in (0, 1)])
    outermost = region.mask & ~inner
    yield Measure("edge", _round(float(np.median(np.hypot(*change[:, outermost])))), "grey")


def hull_of(mask: npt.NDArray[np.bool_]) -> Floats:
    """Corners (row, column) of the convex hull of a mask's pixels, which are squares of side 1; in order."""
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(mask.any(axis=1))
    part = mask[rows]
    first, last = part.argmax(axis=1), mask.shape[1] - part[:, ::-1].argmax(axis=1)
    corners = np.stack([np.tile(np.concatenate([rows, rows + 1]), 2), np.repeat([first, last], 2, axis=0).ravel()], 1)
    hull: Floats = corners[ConvexHull(corners).vertices].astype(np.float64)
    return hull


def axes(hull: Floats) -> tuple[float, float, float]:
    """Greatest distance of two corners of a convex polygon, its least width, and its area."""
    apart = np.hypot(*(hull[:, None] - hull[None]).transpose(2, 0, 1))
    edges = np.roll(hull, -1, axis=0) - hull
    normals = np.stack([-edges[:, 1], edges[:, 0]], axis=1) / np.hypot(edges[:, 0], edges[:, 1])[:, None]
    along = hull @ normals.T
    area = abs((hull[:, 0] * np.roll(hull[:, 1], -1) - np.roll(hull[:, 0], -1) * hull[:, 1]).sum()) / 2
    return float(apart.max()), float((along.max(axis=0) - along.min(axis=0)).min()), float(area)


def pieces(mask: npt.NDArray[np.bool_]) -> int:
    """Connected pieces; pixels that meet at a corner are one."""
    from scipy import ndimage

    return int(ndimage.label(mask, structure=np.ones((3, 3), int))[1])


def holes(mask: npt.NDArray[np.bool_]) -> int:
    """Openings that the mask encloses, also where it does so only at corners."""
    from scipy import ndimage

    return int(ndimage.label(np.pad(~mask, 1, constant_values=True))[1]) - 1


def eroded(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels of a mask whose eight neighbours belong to it too; none at the edge of the image."""
    inner = np.zeros_like(mask)
    rows = mask[:-2] & mask[1:-1] & mask[2:]
    inner[1:-1, 1:-1] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return inner


def local_std(grey: npt.NDArray[np.uint8], inner: npt.NDArray[np.bool_]) -> float:
    """Root of the mean variance within 3 x 3 pixels around each pixel of `inner`, which is no pixel at the edge."""
    values = grey.astype(np.int32)
    sums = [_threes(v) for v in (values, values * values)]
    kept = inner[1:-1, 1:-1]
    mean, square = sums[0][kept] / 9, sums[1][kept] / 9
    return float(np.sqrt((square - mean * mean).mean()))


def _threes(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    rows = values[:-2] + values[1:-1] + values[2:]
    sums: npt.NDArray[np.int32] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return sums


def glcm(levels: npt.NDArray[Any], inner: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Contrast and homogeneity of neighbours that both lie in `inner`: means of d^2 and of 1 / (1 + d^2), d being the
    difference of their levels. Those of the symmetric co-occurrence matrix of all four directions."""
    height, width = levels.shape
    squares = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
        b = np.s_[dy:, max(0, dx) : width - max(0, -dx)]
        both = inner[a] & inner[b]
        squares.append((levels[a][both].astype(np.int32) - levels[b][both]) ** 2)
    found = np.concatenate(squares)
    if not found.size:
        return 0.0, 1.0
    return float(found.mean()), float((1 / (1 + found)).mean())


def _grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """The mask and all within `by` pixels of it along rows and columns."""
    from scipy import ndimage

    grown = ndimage.maximum_filter1d(mask.view(np.uint8), 2 * by + 1, axis=0, mode="constant")
    made: npt.NDArray[np.bool_] = ndimage.maximum_filter1d(grown, 2 * by + 1, axis=1, mode="constant").view(np.bool_)
    return made


def _round(value: float) -> float:
    return round(float(value), DIGITS)
