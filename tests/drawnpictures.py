"""Plots, tables, diagrams and gels drawn by code: the same generator state, the same picture.

They stand in for what the sample data holds too little of; they train, and never count in an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Rng = np.random.Generator
Box = tuple[int, int, int, int]
_WORDS = [
    "control", "treated", "patients", "baseline", "p<0.001", "age", "sex", "group", "mean", "dose", "week",
    "expression", "protein", "cell", "time", "outcome", "model", "95%", "CI", "12.4", "0.83", "1,204", "(n=42)",
    "score", "total", "tumour", "gene", "days", "mg/kg", "risk",
]


def _colour(rng: Rng, low: int = 0, high: int = 230) -> tuple[int, int, int]:
    if rng.random() < 0.3:
        grey = int(rng.integers(low, high))
        return grey, grey, grey
    red, green, blue = (int(v) for v in rng.integers(low, high, 3))
    return red, green, blue


def _words(rng: Rng, count: int) -> str:
    return " ".join(str(word) for word in rng.choice(_WORDS, count))


def _page(rng: Rng) -> tuple[Image.Image, Any]:
    size = (int(rng.integers(400, 900)), int(rng.integers(300, 900)))
    image = Image.new("RGB", size, "white" if rng.random() < 0.9 else _colour(rng, 225, 255))
    return image, ImageDraw.Draw(image)


def plot(rng: Rng) -> Image.Image:
    """One to six panels with axes and bars, lines, points, boxes or a heat map."""
    image, draw = _page(rng)
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kinds = rng.choice(["bars", "lines", "points", "boxes", "heat"], 2)
    for row in range(rows):
        for column in range(columns):
            x, y = image.width // columns * column, image.height // rows * row
            _panel(draw, (x, y, x + image.width // columns, y + image.height // rows), str(rng.choice(kinds)), rng)
    return image


def _panel(draw: Any, box: Box, kind: str, rng: Rng) -> None:
    width, height = box[2] - box[0], box[3] - box[1]
    size = max(9, min(width, height) // int(rng.integers(14, 24)))
    font = ImageFont.load_default(size)
    x0, y0, x1, y1 = box[0] + width // 6 + size, box[1] + height // 10, box[2] - width // 12, box[3] - height // 6
    if kind == "heat":
        _heat(draw, (x0, y0, x1, y1), rng)
    else:
        line = int(rng.integers(1, 4))
        if rng.random() < 0.4:
            draw.rectangle((x0, y0, x1, y1), outline="black", width=line)
        draw.line((x0, y0, x0, y1, x1, y1), fill="black", width=line)
        ticks = int(rng.integers(3, 8))
        for tick in range(ticks):
            at = y1 - (y1 - y0) * tick // ticks
            draw.line((x0 - 5, at, x0, at), fill="black", width=line)
            draw.text((x0 - 3 * size, at - size // 2), f"{tick * rng.integers(1, 30)}", fill="black", font=font)
            if rng.random() < 0.2:
                draw.line((x0, at, x1, at), fill="lightgrey")
        {"bars": _bars, "lines": _curves, "points": _points, "boxes": _boxes}[kind](draw, (x0, y0, x1, y1), rng)
    for tick in range(int(rng.integers(2, 7))):
        draw.text((x0 + (x1 - x0) * tick // 6, y1 + 6), _words(rng, 1), fill="black", font=font)
    draw.text(((x0 + x1) // 2 - 3 * size, y1 + 8 + size), _words(rng, 2), fill="black", font=font)
    if rng.random() < 0.5:
        draw.text((x0, box[1] + 2), _words(rng, 2), fill="black", font=font)


def _bars(draw: Any, box: Box, rng: Rng) -> None:
    x0, y0, x1, y1 = box
    count, colours = int(rng.integers(2, 14)), [_colour(rng) for _ in range(rng.integers(1, 4))]
    level = rng.random() < 0.25
    for bar in range(count):
        value, colour = rng.uniform(0.1, 0.95), colours[bar % len(colours)]
        if level:
            top = y0 + (y1 - y0) * bar // count
            thick = max(3, (y1 - y0) // count * 2 // 3)
            draw.rectangle((x0, top + 1, x0 + int(value * (x1 - x0)), top + thick), colour)
            continue
        left, wide = x0 + (x1 - x0) * bar // count + 3, max(3, (x1 - x0) // count * 2 // 3)
        top = y1 - int(value * (y1 - y0))
        draw.rectangle((left, top, left + wide, y1), fill=colour, outline="black" if rng.random() < 0.4 else None)
        draw.line((left + wide // 2, top - 12, left + wide // 2, top), fill="black")


def _curves(draw: Any, box: Box, rng: Rng) -> None:
    x0, y0, x1, y1 = box
    for _ in range(int(rng.integers(1, 7))):
        steps = np.cumsum(rng.normal(rng.uniform(-0.3, 0.3), 1, int(rng.integers(6, 80))))
        values = (steps - steps.min()) / max(np.ptp(steps), 0.1) * rng.uniform(0.3, 1)
        xs = np.linspace(x0, x1, len(values))
        points = [(float(x), float(y1 - v * (y1 - y0))) for x, v in zip(xs, values, strict=True)]
        colour = _colour(rng)
        draw.line(points, fill=colour, width=int(rng.integers(1, 4)))
        if rng.random() < 0.4:
            for x, y in points:
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def _points(draw: Any, box: Box, rng: Rng) -> None:
    x0, y0, x1, y1 = box
    for _ in range(int(rng.integers(1, 5))):
        colour, radius = _colour(rng), int(rng.integers(2, 6))
        xy = rng.multivariate_normal([0.5, 0.5], [[0.04, 0.03], [0.03, 0.04]], int(rng.integers(10, 300))).clip(0, 1)
        for x, y in xy * (x1 - x0, y1 - y0) + (x0, y0):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _boxes(draw: Any, box: Box, rng: Rng) -> None:
    x0, y0, x1, y1 = box
    count = int(rng.integers(2, 8))
    for number in range(count):
        low, middle, high = np.sort(rng.uniform(0.15, 0.85, 3)) * (y1 - y0) + y0
        left, wide = x0 + (x1 - x0) * number // count + 6, (x1 - x0) // count // 2
        draw.line((left + wide // 2, low - 20, left + wide // 2, high + 20), fill="black")
        draw.rectangle((left, low, left + wide, high), fill=_colour(rng, 80, 255), outline="black")
        draw.line((left, middle, left + wide, middle), fill="black", width=2)


def _heat(draw: Any, box: Box, rng: Rng) -> None:
    x0, y0, x1, y1 = box
    rows, columns = int(rng.integers(4, 30)), int(rng.integers(4, 30))
    low, high = np.array(_colour(rng)), np.array(_colour(rng, 100, 255))
    for row in range(rows):
        for column in range(columns):
            colour = tuple(int(v) for v in low + rng.random() * (high - low))
            cell = (x0 + (x1 - x0) * column // columns, y0 + (y1 - y0) * row // rows)
            draw.rectangle((*cell, cell[0] + (x1 - x0) // columns, cell[1] + (y1 - y0) // rows), fill=colour)


def table(rng: Rng) -> Image.Image:
    """Rows of words and numbers between rules, or running text."""
    image, draw = _page(rng)
    size = int(rng.integers(11, 26))
    font, line = ImageFont.load_default(size), int(size * rng.uniform(1.3, 2.4))
    if rng.random() < 0.2:
        for y in range(10, image.height - size, line):
            draw.text((10, y), _words(rng, image.width // (4 * size)), fill="black", font=font)
        return image
    lefts = np.sort(rng.uniform(0.2, 0.95, int(rng.integers(1, 7)))) * image.width
    rules, zebra, frame = rng.choice(["few", "rows", "all"]), rng.random() < 0.3, _colour(rng, 0, 200)
    shade, rows = _colour(rng, 200, 250), list(range(6, image.height - line, line))
    for number, y in enumerate(rows):
        if zebra and number % 2:
            draw.rectangle((0, y, image.width, y + line), fill=shade)
        if rules != "few" or number in (0, 1, len(rows) - 1):
            draw.line((4, y, image.width - 4, y), fill=frame, width=int(rng.integers(1, 3)))
        draw.text((8, y + 3), _words(rng, int(rng.integers(1, 4))), fill="black", font=font)
        for left in lefts:
            if rng.random() < 0.85:
                draw.text((left, y + 3), _words(rng, 1), fill="black", font=font)
    if rules == "all":
        for left in (4, *lefts, image.width - 4):
            draw.line((left - 4, rows[0], left - 4, rows[-1]), fill=frame)
    return image


def diagram(rng: Rng) -> Image.Image:
    """Boxes and ellipses joined by arrows, overlapping circles, or a net of nodes."""
    image, draw = _page(rng)
    draw_it = (_flow, _venn, _net)[rng.choice(3, p=[0.6, 0.2, 0.2])]
    draw_it(draw, image.size, rng)
    return image.filter(ImageFilter.SMOOTH) if rng.random() < 0.5 else image


def _flow(draw: Any, size: tuple[int, int], rng: Rng) -> None:
    rows, columns = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    wide, tall = size[0] // columns, size[1] // rows
    font = ImageFont.load_default(max(10, min(wide // 14, tall // 4)))
    fills = ["white", *(_colour(rng, 120, 255) for _ in range(3))]
    if rng.random() < 0.3:
        draw.rounded_rectangle((4, 4, size[0] - 5, size[1] - 5), 20, fill=_colour(rng, 200, 255), outline="grey")
    for row in range(rows):
        for column in range(columns):
            if rng.random() < 0.2:
                continue
            x0, y0 = column * wide + wide // 8, row * tall + tall // 8
            box = (x0, y0, x0 + wide * 3 // 4, y0 + tall * 5 // 8)
            style = {"fill": fills[rng.integers(4)], "outline": _colour(rng, 0, 120), "width": int(rng.integers(1, 4))}
            shape = rng.choice(["box", "round", "ellipse"])
            if shape == "ellipse":
                draw.ellipse(box, **style)
            else:
                draw.rounded_rectangle(box, 0 if shape == "box" else 14, **style)
            for line in range(int(rng.integers(1, 3))):
                draw.text((x0 + wide // 10, y0 + tall // 8 + line * tall // 5), _words(rng, 2), fill="black", font=font)
            if row < rows - 1:
                middle, end = (box[0] + box[2]) // 2, y0 + tall
                draw.line((middle, box[3], middle, end), fill="black", width=2)
                draw.polygon([(middle - 6, end - 9), (middle + 6, end - 9), (middle, end)], fill="black")
            if column < columns - 1 and rng.random() < 0.5:
                level = (box[1] + box[3]) // 2
                draw.line((box[2], level, box[2] + wide // 4, level), fill="black", width=2)


def _venn(draw: Any, size: tuple[int, int], rng: Rng) -> None:
    font = ImageFont.load_default(max(11, min(size) // 22))
    for _ in range(int(rng.integers(2, 7))):
        radius = min(size) * rng.uniform(0.12, 0.3)
        x, y = rng.uniform(0.25, 0.75) * size[0], rng.uniform(0.25, 0.75) * size[1]
        fill = None if rng.random() < 0.3 else _colour(rng, 120, 240)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=_colour(rng, 0, 150), width=2)
        draw.text((x - radius / 2, y), str(rng.integers(1, 900)), fill="black", font=font)
        draw.text((x - radius, y - radius - 20), _words(rng, 2), fill="black", font=font)


def _net(draw: Any, size: tuple[int, int], rng: Rng) -> None:
    nodes = rng.uniform(0.08, 0.92, (int(rng.integers(6, 40)), 2)) * size
    font = ImageFont.load_default(max(10, min(size) // 40))
    for _ in range(int(1.4 * len(nodes))):
        a, b = nodes[rng.integers(len(nodes))], nodes[rng.integers(len(nodes))]
        draw.line((*a, *b), fill=_colour(rng, 60, 200), width=int(rng.integers(1, 3)))
    for x, y in nodes:
        radius = int(rng.integers(4, 22))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng, 60, 255), outline="black")
        draw.text((x, y + radius), _words(rng, 1), fill="black", font=font)


def gel(rng: Rng) -> Image.Image:
    """Lanes with blurred bands, dark on light (blots) or light on dark (gels), in one or several strips."""
    strips, lanes = int(rng.integers(1, 6)), int(rng.integers(3, 14))
    width = int(rng.integers(300, 800))
    tall = int(rng.integers(60, 400) if rng.random() < 0.5 else rng.integers(40, 110))
    gap = int(rng.integers(4, 20))
    image = Image.new("RGB", (width, strips * (tall + gap)), "white")
    for strip in range(strips):
        image.paste(_strip(width, tall, lanes, rng), (0, strip * (tall + gap)))
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        for strip in range(strips):
            draw.rectangle((0, strip * (tall + gap), width - 1, strip * (tall + gap) + tall), outline="black", width=2)
    return _margins(image, rng) if rng.random() < 0.6 else image


def _strip(width: int, tall: int, lanes: int, rng: Rng) -> Image.Image:
    ground = rng.uniform(0.65, 0.98)
    pixels = np.full((tall, width), ground) + np.linspace(0, rng.uniform(-0.15, 0.15), width)[None, :]
    y, x = np.mgrid[:tall, :width]
    bands = [(rng.uniform(0.1, 0.9) * tall, rng.uniform(2, 9)) for _ in range(rng.integers(1, 3 if tall < 120 else 9))]
    for lane in range(lanes):
        centre, half = (lane + 0.5) * width / lanes, width / lanes * rng.uniform(0.28, 0.46)
        side = np.clip((half - np.abs(x - centre)) / (0.25 * half), 0, 1)
        for at, thick in bands:
            strength = rng.uniform(0, 1) * (rng.random() < 0.8)
            pixels -= strength * side * np.exp(-(((y - at - rng.normal(0, 1)) / thick) ** 2))
    pixels += rng.normal(0, rng.uniform(0.002, 0.03), pixels.shape)
    pixels = np.clip(pixels, 0.02, 1)
    return Image.fromarray(((1 - pixels if rng.random() < 0.35 else pixels) * 255).astype(np.uint8)).convert("RGB")


def _margins(image: Image.Image, rng: Rng) -> Image.Image:
    left, top, right = int(image.width * rng.uniform(0, 0.25)), int(rng.integers(0, 70)), int(image.width * 0.15)
    page = Image.new("RGB", (image.width + left + right, image.height + top), "white")
    page.paste(image, (left, top))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(int(rng.integers(12, 24)))
    for number in range(6):
        draw.text((left + number * image.width // 6, max(0, top - 28)), _words(rng, 1), fill="black", font=font)
        draw.text((page.width - right + 4, top + number * image.height // 6), _words(rng, 1), fill="black", font=font)
    return page


DRAWN: Mapping[str, Callable[[Rng], Image.Image]] = {"plot": plot, "table": table, "diagram": diagram, "gel": gel}
"""class -> what draws one"""
