"""Makes the two figures of the invented example article beside it; the same bytes each time with the same Pillow.

    python make_figures.py

The phantom is a sum of ellipses in Hounsfield units; the bars of figure 2B are measured in the slice of figure 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SIDE, SPACING_MM = 256, 1.4
WINDOW = (-1000.0, 400.0)
Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def ellipse(x_mm: float, y_mm: float, width_mm: float, height_mm: float) -> Mask:
    """Pixels inside an ellipse; the origin is the middle of the slice, y grows downwards (to the back)."""
    at = (np.arange(SIDE) - (SIDE - 1) / 2) * SPACING_MM
    x, y = (at[None, :] - x_mm) * 2 / width_mm, (at[:, None] - y_mm) * 2 / height_mm
    return x**2 + y**2 <= 1


def regions() -> dict[str, Mask]:
    """The tissues of the phantom, apart from each other."""
    body, bone, nodule = ellipse(0, 0, 320, 230), ellipse(0, 70, 44, 40), ellipse(-80, 5, 25, 25)
    lungs = ellipse(-75, -5, 110, 160) | ellipse(75, -5, 110, 160)
    return {"lung": lungs & ~nodule, "soft tissue": body & ~lungs & ~bone, "nodule": nodule, "bone": bone}


def phantom(tissues: dict[str, Mask]) -> Array:
    """The slice in HU: air, tissues, and Gaussian noise of 20 HU."""
    values = {"lung": -800.0, "soft tissue": 40.0, "nodule": 40.0, "bone": 600.0}
    hounsfield = np.full((SIDE, SIDE), -1000.0)
    for name, inside in tissues.items():
        hounsfield[inside] = values[name]
    return hounsfield + np.random.default_rng(20261124).normal(0, 20, hounsfield.shape)


def shown(hounsfield: Array) -> Image.Image:
    """An image in the window."""
    low, high = WINDOW
    grey = np.clip((hounsfield - low) / (high - low), 0, 1) * 255
    return Image.fromarray(grey.round().astype(np.uint8))


def bars(means: dict[str, float], size: tuple[int, int]) -> Image.Image:
    """A bar chart of mean HU, with a line at zero."""
    image = Image.new("L", size, 255)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    width, zero, scale = size[0] / len(means), size[1] * 0.45, size[1] * 0.45 / 1000
    for number, (name, mean) in enumerate(means.items()):
        left, right, end = (number + 0.2) * width, (number + 0.8) * width, zero - mean * scale
        draw.rectangle((left, min(zero, end), right, max(zero, end)), fill=110)
        middle = (left + right) / 2
        draw.text((middle, end + (-4 if mean > 0 else 4)), f"{mean:.0f}", 0, font, "md" if mean > 0 else "ma")
        draw.text((middle, size[1] - 4), name, 0, font, "md")
    draw.line((0, zero, size[0], zero), fill=0, width=2)
    return image


def figure_2(hounsfield: Array, tissues: dict[str, Mask]) -> Image.Image:
    """Panel A, the nodule magnified six times, and panel B, the bars; white between them."""
    rows, columns = np.nonzero(tissues["nodule"])
    row, column = int(rows.mean()), int(columns.mean())
    crop = shown(hounsfield[row - 28 : row + 28, column - 28 : column + 28])
    crop = crop.resize((336, 336), Image.Resampling.NEAREST)
    means = {name: float(hounsfield[inside].mean()) for name, inside in tissues.items()}
    page = Image.new("L", (820, 392), 255)
    page.paste(crop, (20, 40))
    page.paste(bars(means, (400, 336)), (396, 40))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(26)
    for letter, x in (("A", 20), ("B", 396)):
        draw.text((x, 4), letter, 0, font)
    return page


def main() -> None:
    """Write both files."""
    tissues = regions()
    hounsfield = phantom(tissues)
    slice_ = shown(hounsfield).resize((512, 512), Image.Resampling.BICUBIC)
    slice_.save(HERE / "example-g001.jpg", quality=85)
    figure_2(hounsfield, tissues).save(HERE / "example-g002.png", optimize=True)


if __name__ == "__main__":
    main()
