"""Expert: the lesion in a dermoscopic image, by its colour against the skin around it.

The invariant: at most one region, in one piece and without holes; where nothing stands out from the skin there is none.
Its outline is believed (trust "boundary").

Method: on a copy of 256 px, dark hairs are found by a closing (after DullRazor, Lee et al., Comput. Biol. Med. 27:533,
1997) and painted over from beside them; the distance in CIELAB to the skin, the colour of the lighter half of the rim,
is weighted towards the centre, where lesions are placed when the picture is taken; Otsu's threshold; the part that
stands out most. The black corners round a circular view are left out.

Not measured here, since no dermoscopic images with references are at hand. Another writing of the method had, on ten
ISIC images taken from figures, a mean Dice of 0.89 (median 0.95, worst 0.65: pink mucosa), with its thresholds chosen
on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Dropped
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.experts.foreground import closed, otsu
from transforms.experts.shapes import Floats, Mask, best_part, grown, shrunk

NAME = "skin_lesion"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}
CARD = Card(
    family="classical", trust="boundary", kinds=("photography",), modalities=("DMS",),
    classes=(Class("skin lesion", "lesion"),), value_space="rgb8",
)
TRUST = CARD.trust

SIDE = 256
"""Longer side, in pixels, of the copy that is looked at."""
HAIR_WIDTH, HAIR_DEPTH = 9, 8.0
"""Pixels of the copy that a hair, at most, is wide, and by how much (CIELAB L) it is darker than what is beside it."""
BLACK = 15.0
"""CIELAB L under which what touches the rim of the picture is not skin."""
RIM = 0.06
"""Width of the rim whose colour is the skin's, as a share of the longer side."""


class Params(BaseModel):
    """What a recipe may set for the skin lesion expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    center: float = Field(0.6, gt=0, description="how far from the centre lesions lie, in half sides of the picture")
    contrast: float = Field(8.0, ge=0, description="least mean distance in CIELAB between a lesion and the rest")
    min_area: float = Field(0.005, ge=0, le=1, description="smallest lesion, as a share of the image")


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """The lesion, or nothing. Raises Dropped NO_COLOUR for a grey picture."""
    from scipy import ndimage

    if pixels.ndim == 2:
        raise Dropped("NO_COLOUR", "a grey picture: a lesion is told from the skin by its colour")
    lab = _without_hair(_lab(shrunk(pixels, SIDE)))
    seen = _seen(lab[..., 0])
    if not seen.any():
        return []
    distance = ndimage.gaussian_filter(np.linalg.norm(lab - _skin(lab, seen), axis=2), 2.0)
    weighted = distance * _prior(distance.shape, params.center)
    threshold = otsu(weighted[seen])
    if threshold is None:
        return []
    lesion = best_part(ndimage.binary_opening((weighted > threshold) & seen, iterations=2), weighted)
    lesion = ndimage.binary_fill_holes(closed(lesion, 3)) & seen
    others = seen & ~lesion
    if lesion.mean() < params.min_area or not others.any():
        return []
    if distance[lesion].mean() - distance[others].mean() < params.contrast:
        return []
    return [Region(label="skin lesion", role="lesion", mask=grown(lesion, pixels.shape))]


def _without_hair(lab: Floats) -> Floats:
    """The picture with thin dark lines replaced by the mean of what is near them."""
    from scipy import ndimage

    reach = HAIR_WIDTH // 2
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    filled = ndimage.grey_closing(lab[..., 0], footprint=rows**2 + columns**2 <= reach**2)
    hair = ndimage.binary_dilation(filled - lab[..., 0] > HAIR_DEPTH)
    if not hair.any() or hair.all():
        return lab
    kept = (~hair).astype(float)
    near = ndimage.gaussian_filter(kept, reach)
    painted = [ndimage.gaussian_filter(lab[..., c] * kept, reach) / np.maximum(near, 1e-6) for c in range(3)]
    return np.where((hair & (near > 1e-3))[..., None], np.stack(painted, axis=2), lab)


def _seen(lightness: Floats) -> Mask:
    """What shows skin: all but the black around a circular view."""
    from scipy import ndimage

    parts, _ = ndimage.label(np.pad(lightness < BLACK, 1, constant_values=True))
    black = (parts == parts[0, 0])[1:-1, 1:-1]
    return np.asarray(~ndimage.binary_dilation(black, iterations=3)) if black.any() else ~black


def _skin(lab: Floats, seen: Mask) -> Floats:
    """CIELAB of the skin: the median of the lighter half of the rim, since a lesion may reach the rim."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(seen, 1))[1:-1, 1:-1]
    rim = lab[seen & (depth <= RIM * max(seen.shape))]
    return np.asarray(np.median(rim[rim[:, 0] >= np.median(rim[:, 0])], axis=0))


def _prior(shape: tuple[int, ...], reach: float) -> Floats:
    """1 in the centre, falling to 0.4 far from it."""
    rows, columns = (np.linspace(-1, 1, n) for n in shape)
    return np.asarray(0.4 + 0.6 * np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * reach**2)))


def _lab(pixels: Pixels) -> Floats:
    """CIELAB (D65) of sRGB, IEC 61966-2-1; L is 0 to 100."""
    unit = pixels / 255.0
    linear = np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)
    to_xyz = np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    xyz = linear @ to_xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=2)
