"""Expert: nuclei in tissue stained with haematoxylin and eosin, by colour deconvolution.

The invariant: every nucleus found is told, one region each; tissue with a brown stain (immunohistochemistry) and dark
fields are refused. Box-grade (trust "box"): clumps come apart only in part, so neither number nor area is to be
believed.

Method: optical density against the brightest of each channel, unmixed into haematoxylin, eosin and DAB (Ruifrok &
Johnston, Anal. Quant. Cytol. Histol. 23:291, 2001); haematoxylin over a global floor, `share` of the way from the
background to Otsu's threshold, and over a local one, `local` of the way from the background to the peaks nearby;
touching nuclei part along the watershed of the distance transform, as in transforms/experts/cells.py. Windows and
depths follow the size of a typical nucleus in the picture, so that the magnification need not be known.

Measured on the ten stained tissues of the 2018 Data Science Bowl, stage 1 (328 nuclei, most in purple on a purple
ground): F1 0.70 at IoU 0.5, Dice of all nuclei together 0.85. `share`, `local` and `depth` were chosen on the same
images. Looked at on the H&E tile of StarDist: 309 nuclei, good outlines, clumps left together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Dropped
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.experts.cells import parted
from transforms.experts.foreground import otsu
from transforms.experts.shapes import Floats, Mask

NAME = "nuclei"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy", "SimpleITK": "simpleitk"}
CARD = Card(
    family="classical", trust="box", kinds=("microscopy",), modalities=("histopathology", "SM"),
    classes=(Class("nucleus", "cell"),), value_space="rgb8",
)
TRUST = CARD.trust

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of haematoxylin, eosin and DAB in red, green and blue, by Ruifrok and Johnston."""
STAINED = 0.3
"""Optical density, summed over the channels, from which a pixel counts as stained."""
BROWN = 0.05
"""Share of the stained pixels that may absorb blue most (DAB) in a picture of H&E: there it is under 0.01."""
DARK = 100
"""Median grey level under which a picture is no bright field."""
PLAIN = 20
"""Mean difference, in grey levels, between the channels of stained pixels under which a picture has no colour."""
CONTRAST = 0.05
"""Optical density between background and Otsu's threshold under which there are no nuclei."""
WINDOW = 1.4
"""Side of half the window in which peaks are looked for, in radii of a typical nucleus."""


class Params(BaseModel):
    """What a recipe may set for the nucleus expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.5, gt=0, le=1, description="floor, as a share of the way from background to threshold")
    local: float = Field(0.3, gt=0, lt=1, description="edge of a nucleus, as a share of its peak over the background")
    depth: float = Field(
        0.05, ge=0, description="watershed basins shallower than this are merged, in radii of a typical nucleus"
    )
    min_area: float = Field(0.15, gt=0, description="smallest nucleus, as a share of a typical one")


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region a nucleus. Raises Dropped for pictures that are no H&E: grey, dark or with a brown stain."""
    from scipy import ndimage

    density = _density(pixels)
    if density is None:
        return
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    blue = ndimage.gaussian_filter((density @ np.linalg.inv(stains))[..., 0], 1.0)
    threshold = otsu(blue)
    if threshold is None:
        return
    background = float(np.median(blue[blue <= threshold]))
    if threshold - background < CONTRAST:
        return
    radius = _radius(blue > threshold)
    near = 1 + 2 * round(WINDOW * radius)
    peaks = ndimage.gaussian_filter(ndimage.maximum_filter(blue, near), near / 4)
    floor = background + params.share * (threshold - background)
    nuclei = blue > np.maximum(floor, background + params.local * (peaks - background))
    nuclei = ndimage.binary_fill_holes(ndimage.binary_opening(nuclei, iterations=max(1, round(radius / 6))))
    for mask in parted(nuclei, params.depth * radius):
        if np.count_nonzero(mask) >= params.min_area * np.pi * radius**2:
            yield Region(label="nucleus", role="cell", mask=mask)


def _density(pixels: Pixels) -> Floats | None:
    """(height, width, 3) optical density, None where nothing is stained; raises Dropped where it is no H&E."""
    if pixels.ndim == 2:
        raise Dropped("NO_COLOUR", "a grey picture shows no stain, so nuclei cannot be told by their colour")
    if np.median(pixels) < DARK:
        raise Dropped("NOT_BRIGHT_FIELD", "the background is dark, so this is no picture of H&E")
    white = np.percentile(pixels.reshape(-1, 3), 99, axis=0)
    density: Floats = -np.log10(np.minimum((pixels + 1.0) / (white + 1), 1))
    stained = density.sum(axis=2) > STAINED
    if not stained.any():
        return None
    if np.ptp(pixels[stained].astype(int), axis=1).mean() < PLAIN:
        raise Dropped("NO_COLOUR", "a grey picture shows no stain, so nuclei cannot be told by their colour")
    if (density[stained][:, 2] > 1.1 * density[stained][:, 1]).mean() > BROWN:
        raise Dropped("NOT_HE", "brown as of immunohistochemistry, within which nuclei cannot be told by their colour")
    return density


def _radius(nuclei: Mask) -> float:
    """Radius of a typical nucleus, in pixels: the median depth of the parts, and a bit since they are not round."""
    from scipy import ndimage

    parts, count = ndimage.label(ndimage.binary_opening(nuclei))
    depths = np.asarray(ndimage.maximum(ndimage.distance_transform_edt(nuclei), parts, range(1, count + 1)))
    depths = depths[depths > 2]
    return 1.3 * float(np.median(depths)) if depths.size else 5.0
