"""Synthetic compound figures with known answers, all drawn by code: panels, letters, and a caption with its parts.

The invariant: a figure depends on its seed and style alone, and `panels` is what a careful reader would mark: the
picture of each panel (for a plot: with axis labels and title), without a letter that stands outside of it.

>>> made = make(7, "plots")
>>> made.panels[0]
('A', (12, 30, 341, 262))
>>> made.caption[slice(*made.parts["A"])]
'axial CT of the abdomen'
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
Array = npt.NDArray[np.uint8]
Random = np.random.Generator
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

COMPOUND = ("white", "black", "thin", "touching", "plots", "mixed", "nested", "unequal", "above", "below", "unlabelled")
SINGLE = ("single photo", "single plot", "single inset")
STYLES = COMPOUND + SINGLE


@dataclass(frozen=True)
class Compound:
    """A figure and all that is known about it."""

    pixels: Array
    """(height, width, 3)"""
    panels: list[tuple[str | None, Box]]
    """letter without brackets (None: none is drawn) and box (x0, y0, x1, y1), half-open, in reading order; a figure
    that is not compound has one panel"""
    caption: str
    parts: dict[str, tuple[int, int]]
    """letter, or "left" and "right" -> start and end, in the caption, of what it says about that panel; panels that
    are described together share a part"""
    style: str


def make(seed: int, style: str | None = None) -> Compound:
    """The figure of a seed, in a style of STYLES (None: the seed's own)."""
    rng = np.random.default_rng(seed)
    style = style or STYLES[int(rng.integers(len(STYLES)))]
    if style in SINGLE:
        return _single(rng, style)
    dark = style == "black"
    gutter = {"touching": 0, "thin": int(rng.integers(1, 4))}.get(style, int(rng.integers(6, 36)))
    margin = 0 if style in ("touching", "thin") else int(rng.integers(0, 24))
    place = "inside"
    if style in ("above", "below"):
        place = style
    elif style in ("plots", "mixed"):
        place = "corner"
    letters = style != "unlabelled"
    tiles = _layout(rng, style, gutter)
    if place in ("above", "below", "corner"):
        gutter = max(gutter, 12)
    parity = int(rng.integers(2))
    kinds = [_kind(rng, style, at + parity) for at in range(len(tiles))]
    return _compose(rng, style, tiles, kinds, margin, gutter, place, letters, dark)


def _layout(rng: Random, style: str, gutter: int) -> list[Box]:
    """Tiles as boxes without the room for letters."""
    low = 190 if style in ("plots", "mixed", "unlabelled") else 130
    width, height = (int(rng.integers(low, 330)) for _ in range(2))
    if style == "nested":
        big = (0, 0, 2 * width + gutter, 2 * height + gutter)
        count = int(rng.integers(2, 4))
        size = (big[3] - gutter * (count - 1)) // count
        tall = [(0, at * (size + gutter), width, at * (size + gutter) + size) for at in range(count)]
        if rng.random() < 0.5:
            return [big, *((x0 + big[2] + gutter, y0, x1 + big[2] + gutter, y1) for x0, y0, x1, y1 in tall)]
        wide = [(y0, big[3] + gutter, y1, big[3] + gutter + height) for _, y0, _, y1 in tall]
        return [big, *((x0, y0, min(x1, big[2]), y1) for x0, y0, x1, y1 in wide)]
    rows, columns = ((1, 2), (1, 3), (2, 1), (2, 2), (2, 2), (2, 3), (3, 2), (3, 3))[int(rng.integers(8))]
    if style == "unequal":
        rows, columns = max(rows, 2), max(columns, 2)
    tiles, y = [], 0
    total = columns * width + (columns - 1) * gutter
    for _ in range(rows):
        if style == "unequal":
            here = int(rng.integers(1, columns + 1))
            shares = rng.uniform(0.6, 1.4, here)
            widths = (shares / shares.sum() * (total - gutter * (here - 1))).astype(int)
            tall = int(height * rng.uniform(0.7, 1.3))
        else:
            widths, tall = np.full(columns, width), height
        x = 0
        for wide in widths:
            tiles.append((x, y, x + int(wide), y + tall))
            x += int(wide) + gutter
        y += tall + gutter
    return tiles


def _kind(rng: Random, style: str, at: int) -> Callable[[Random, int, int], Array]:
    if style == "plots" or (style in ("mixed", "unlabelled") and at % 2):
        return plot
    return PHOTOS[int(rng.integers(len(PHOTOS)))]


def _compose(
    rng: Random, style: str, tiles: list[Box], kinds: list[Callable[[Random, int, int], Array]], margin: int,
    gutter: int, place: str, letters: bool, dark: bool,
) -> Compound:
    size = int(rng.integers(12, 30))
    room = 0 if place == "inside" else size + 8
    paper, ink = ((0, 0, 0), (255, 255, 255)) if dark else ((255, 255, 255), (0, 0, 0))
    rows = sorted({y0 for _, y0, _, _ in tiles})
    shift = {y: (rows.index(y) + (place != "below")) * room for y in rows}
    width = max(x1 for _, _, x1, _ in tiles) + 2 * margin
    height = max(y1 + shift[y0] for _, y0, _, y1 in tiles) + 2 * margin + (room if place == "below" else 0)
    page = Image.new("RGB", (width, height), paper)
    alphabet, write = _lettering(rng)
    panels: list[tuple[str | None, Box]] = []
    for at, ((x0, y0, x1, y1), kind) in enumerate(zip(tiles, kinds, strict=True)):
        left, top = x0 + margin, y0 + margin + shift[y0]
        picture = kind(rng, x1 - x0, y1 - y0)
        page.paste(Image.fromarray(picture), (left, top))
        box = _ink(picture) if kind is plot else (0, 0, x1 - x0, y1 - y0)
        letter = alphabet[at] if letters else None
        panels.append((letter, (left + box[0], top + box[1], left + box[2], top + box[3])))
        if letter is not None:
            _letter(rng, page, write(letter), size, place, (left, top, left + x1 - x0, top + y1 - y0), ink)
    caption, parts = _caption(rng, [letter for letter, _ in panels])
    return Compound(_jpeg(rng, page), panels, caption, parts, style)


def _single(rng: Random, style: str) -> Compound:
    width, height = (int(rng.integers(320, 800)) for _ in range(2))
    if style == "single plot":
        picture = plot(rng, width, height)
        box = _ink(picture)
    else:
        picture = PHOTOS[int(rng.integers(len(PHOTOS)))](rng, width, height)
        box = (0, 0, width, height)
    page = Image.fromarray(picture)
    if style == "single inset":
        wide, tall = int(width * rng.uniform(0.2, 0.35)), int(height * rng.uniform(0.2, 0.35))
        inset = Image.fromarray(PHOTOS[int(rng.integers(len(PHOTOS)))](rng, wide, tall))
        page.paste(inset, (width - wide - 6, 6))
        ImageDraw.Draw(page).rectangle((width - wide - 8, 4, width - 5, 7 + tall), outline="white", width=2)
    title, what = _pick(rng, TITLES), _pick(rng, FINDINGS)
    return Compound(_jpeg(rng, page), [(None, box)], f"{title}. Note the {what}.", {}, style)


def _ink(picture: Array) -> Box:
    rows, columns = np.nonzero(picture.min(axis=2) < 200)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _jpeg(rng: Random, page: Image.Image) -> Array:
    quality = int(rng.integers(55, 99))
    if quality >= 95:
        return np.asarray(page)
    file = io.BytesIO()
    page.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# letters


def _lettering(rng: Random) -> tuple[str, Callable[[str], str]]:
    alphabet = ("ABCDEFGHI", "ABCDEFGHI", "abcdefghi", "123456789")[int(rng.integers(4))]
    form = ("{}", "{}", "({})", "{})", "{}.")[int(rng.integers(5))]
    if alphabet[0] == "1":  # bare numbers are hardly ever panel letters
        form = ("({})", "{}")[int(rng.integers(2))]
    return alphabet, form.format


def _letter(
    rng: Random, page: Image.Image, text: str, size: int, place: str, tile: Box, ink: tuple[int, int, int]
) -> None:
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=size)
    bold = int(size >= 16)
    x0, y0, x1, y1 = tile
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=bold)
    wide, tall = int(right - left), int(bottom - top)
    if place == "below":
        at = ((x0 + x1 - wide) // 2, y1 + 5)
    elif place in ("above", "corner"):
        at = (x0, y0 - tall - 5)
    else:
        low = rng.random() < 0.2
        at = (x0 + int(rng.integers(5, 12)), y1 - tall - 8 if low else y0 + int(rng.integers(5, 12)))
        under = np.asarray(page.crop((at[0], at[1], at[0] + wide, at[1] + tall)).convert("L"))
        boxed = under.std() > 25 or rng.random() < 0.3
        ink = (0, 0, 0) if boxed or under.mean() > 120 else (255, 255, 255)
        if boxed:
            draw.rectangle((at[0] - 4, at[1] - 4, at[0] + wide + 4, at[1] + tall + 4), fill="white")
    draw.text((at[0] - left, at[1] - top), text, fill=ink, font=font, stroke_width=bold, stroke_fill=ink)


# pictures


def _noise(rng: Random, width: int, height: int, cell: int) -> npt.NDArray[np.float64]:
    """Smooth noise from 0 to 1, bumps about `cell` pixels wide."""
    small = rng.integers(0, 256, (max(2, height // cell), max(2, width // cell))).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)) / 255


def _grid(width: int, height: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return x, y


def _grey(values: npt.NDArray[np.float64]) -> Array:
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def texture(rng: Random, width: int, height: int) -> Array:
    """A photograph of nothing: smooth colour noise at two scales."""
    coarse, fine = _noise(rng, width, height, 60), _noise(rng, width, height, 7)
    base, span = rng.uniform(30, 160, 3), rng.uniform(40, 90, 3)
    return np.clip(base + span * (coarse * 0.8 + fine * 0.4)[:, :, None], 0, 255).astype(np.uint8)


def ct(rng: Random, width: int, height: int) -> Array:
    """An axial slice: a body with organs on black."""
    x, y = _grid(width, height)
    body = (x / 0.9) ** 2 + (y / 0.75) ** 2 < 1
    values = np.where(body, 95 + 30 * _noise(rng, width, height, 12), 4)
    for _ in range(6):
        cx, cy, radius = rng.uniform(-0.5, 0.5), rng.uniform(-0.45, 0.45), rng.uniform(0.08, 0.25)
        values = np.where((x - cx) ** 2 + (y - cy) ** 2 < radius**2, rng.uniform(20, 230), values)
    return _grey(values + rng.normal(0, 5, values.shape))


def radiograph(rng: Random, width: int, height: int) -> Array:
    """Two dark lungs, and ribs, that fill the frame."""
    x, y = _grid(width, height)
    values = 170 - 40 * y + 25 * _noise(rng, width, height, 40)
    for side in (-0.45, 0.45):
        values -= 90 * np.exp(-(((x - side) / 0.3) ** 2) - (y / 0.6) ** 2)
    values += 18 * np.sin(14 * y + 4 * x**2)
    return _grey(values + rng.normal(0, 4, values.shape))


def histology(rng: Random, width: int, height: int) -> Array:
    """Purple nuclei on pink tissue with white gaps."""
    tissue = _noise(rng, width, height, 25)[:, :, None]
    picture = np.where(tissue > 0.22, [226, 160, 196], [244, 240, 244]) + 30 * (tissue - 0.5)
    nuclei = _noise(rng, width, height, 6)[:, :, None] > 0.72
    return np.clip(np.where(nuclei, [96, 56, 140], picture), 0, 255).astype(np.uint8)


def fluorescence(rng: Random, width: int, height: int) -> Array:
    """Bright cells of one colour on black."""
    picture = np.zeros((height, width, 3))
    cells = np.clip(_noise(rng, width, height, 14) - 0.6, 0, 1) * 600
    picture[:, :, int(rng.integers(3))] = cells + 8
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def blot(rng: Random, width: int, height: int) -> Array:
    """Dark bands on a grey membrane."""
    x, y = _grid(width, height)
    values = 205 + 15 * _noise(rng, width, height, 50)
    for row in np.linspace(-0.6, 0.6, 3):
        for lane in np.linspace(-0.8, 0.8, int(rng.integers(4, 8))):
            values -= rng.uniform(30, 170) * np.exp(-(((x - lane) / 0.08) ** 4) - ((y - row) / 0.06) ** 2)
    return _grey(values + rng.normal(0, 3, values.shape))


PHOTOS = (texture, ct, radiograph, histology, fluorescence, blot)
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#555555", "#ff7f0e", "#9467bd")


def plot(rng: Random, width: int, height: int) -> Array:
    """Bars, lines or points with axes, ticks, labels, perhaps a title and a legend, on white."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    small = ImageFont.load_default(size=int(rng.integers(9, 13)))
    left, top, right, bottom = 48, 8, width - 8, height - 36
    if rng.random() < 0.5:
        draw.text((width // 2 - 30, 2), _pick(rng, ("HeLa cells", "Control", "Day 14", "p < 0.05")), "black", small)
        top = 22
    if rng.random() < 0.5:
        draw.rectangle((left, top, right, bottom), outline="black")
    else:
        draw.line((left, top, left, bottom, right, bottom), fill="black", width=int(rng.integers(1, 3)))
    for at, y in enumerate(np.linspace(bottom, top + 8, 5).astype(int)):
        draw.line((left - 4, y, left, y), fill="black")
        draw.text((left - 26, y - 6), str(at * 10), "black", small)
    name = Image.new("L", (90, 16))
    ImageDraw.Draw(name).text((0, 0), _pick(rng, ("Intensity (AU)", "Cell count", "Survival")), 255, small)
    upright = name.rotate(90, expand=True)
    image.paste("black", (4, (top + bottom) // 2 - 45), upright)
    draw.text(((left + right) // 2 - 25, height - 16), _pick(rng, ("Time (h)", "Dose (mg)", "Group")), "black", small)
    _curve(rng, draw, (left, top, right, bottom), small)
    if rng.random() < 0.4:
        for at, word in enumerate(("treated", "control")):
            draw.rectangle((right - 62, top + 6 + 14 * at, right - 54, top + 12 + 14 * at), fill=COLOURS[at])
            draw.text((right - 50, top + 2 + 14 * at), word, "black", small)
    return np.asarray(image)


def _curve(rng: Random, draw: ImageDraw.ImageDraw, frame: Box, font: Font) -> None:
    left, top, right, bottom = frame
    wide, tall = right - left, bottom - top
    kind = int(rng.integers(3))
    if kind == 0:
        count = int(rng.integers(2, 8))
        step = wide / count
        for at in range(count):
            x, height = left + step * (at + 0.2), tall * rng.uniform(0.15, 0.8)
            draw.rectangle((x, bottom - height, x + step * 0.6, bottom), fill=COLOURS[at % 6])
            draw.text((x, bottom + 4), f"g{at}", "black", font)
        return
    x = np.linspace(left + 4, right - 4, 30)
    for at in range(int(rng.integers(1, 4))):
        drift = np.cumsum(rng.normal(0, 1, 30))
        y = bottom - tall * (0.1 + 0.7 * (drift - drift.min()) / (np.ptp(drift) + 1e-9))
        if kind == 1:
            draw.line([*zip(x.tolist(), y.tolist(), strict=True)], fill=COLOURS[at], width=2)
        else:
            for px, py in zip(rng.uniform(left + 4, right - 4, 30), y, strict=True):
                draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=COLOURS[at])


# captions

TITLES = (
    "Imaging of a 54-year-old patient", "Effect of treatment on tumour growth", "Representative findings",
    "Time course of the disease", "Comparison of the two cohorts",
)
SUBJECTS = (
    "Axial CT of the abdomen", "Frontal chest radiograph", "Haematoxylin and eosin stain", "T2-weighted MR image",
    "Kaplan-Meier curves", "Mean fluorescence intensity", "Western blot of cell lysates", "Sagittal reformation",
)
FINDINGS = (
    "large mass in the left lobe", "resolution of the effusion", "marked infiltration (arrow)", "no residual tumour",
    "increase after 24 h (p < 0.05)", "band at 42 kDa", "difference between groups (n = 12)",
)


def _pick(rng: Random, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _caption(rng: Random, letters: list[str | None]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A title sentence and then what is said of each panel, in one of several grammars."""
    title = _pick(rng, TITLES) + ". "
    names = [letter for letter in letters if letter is not None]
    if not names:
        if len(letters) == 2:
            return _written(title, [(["left"], "Left: "), (["right"], "Right: ")], ". ", rng)
        return title + f"There is {_pick(rng, FINDINGS)}.", {}
    grammar = int(rng.integers(5))
    if grammar == 0:
        return _written(title, [([name], f"({name}) ") for name in names], "; ", rng)
    if grammar == 1:
        return _written(title, [([name], f"{name}, ") for name in names], "; ", rng)
    if grammar == 2:
        return _written(title, [([name], f"{name}: ") for name in names], ". ", rng)
    if len(names) < 3:
        return _written(title, [(names, f"{names[0]} and {names[-1]}: ")], ". ", rng)
    first, rest = names[:-1], names[-1]
    together = f"({first[0]}-{first[-1]}) " if grammar == 3 else f"{', '.join(first[:-1])} and {first[-1]}: "
    return _written(title, [(first, together), ([rest], f"({rest}) " if grammar == 3 else f"{rest}: ")], ". ", rng)


def _written(
    title: str, marked: list[tuple[list[str], str]], between: str, rng: Random
) -> tuple[str, dict[str, tuple[int, int]]]:
    text, parts = title, {}
    for at, (names, marker) in enumerate(marked):
        text += (between if at else "") + marker
        said = f"{_pick(rng, SUBJECTS)} shows {_pick(rng, FINDINGS)}"
        parts.update(dict.fromkeys(names, (len(text), len(text) + len(said))))
        text += said
    return text + ".", parts
