"""Text in pictures, read on the CPU by the models inside the rapidocr wheel (PP-OCRv6 small, Apache-2.0).

The invariant: nothing is fetched and nothing is written. Only models that lie in the installed package are opened, and
only if their SHA-256 is the known one; the same pixels give the same words. One engine lives in a process.

>>> read_words(pixels)
[Word(text='Lot 1', box=(81.0, 7.0, 124.0, 25.0), score=0.998)]
>>> read_line(pixels[0:30, 0:24])
Line(text='A', score=0.99)

Measured on one core: `read_words` 1 to 2 s for a megapixel of figure, `read_line` 5 ms for a single letter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import ConfigError
from infra.keys import sha256
from transforms.decoded import Pixels

REQUIRES: Mapping[str, str] = {"rapidocr": "medloom[ocr]", "onnxruntime": "medloom[ocr]"}
"""For plug-ins that read text: put these among their own REQUIRES."""

DETECTOR = ("PP-OCRv6_det_small.onnx", "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f")
RECOGNISER = ("PP-OCRv6_rec_small.onnx", "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884")
"""File inside the package and its SHA-256, as in rapidocr 3.10."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Word:
    """A run of text on one line, as the detector found it."""

    text: str
    box: Box
    """x0, y0, x1, y1 in pixels, half-open, upright around what may be slanted"""
    score: float
    """mean probability of its characters, 0 to 1"""


@dataclass(frozen=True)
class Line:
    """What a crop that holds one line of text says; `text` is "" where nothing was read."""

    text: str
    score: float


def read_words(pixels: Pixels, min_score: float = 0.5, threads: int = 1) -> list[Word]:
    """All text of a picture, (height, width) or (height, width, 3) RGB, uint8, from top to bottom.

    Words below `min_score` are left out. Raises ConfigError where the models are missing or others than expected.
    """
    found = _engine(threads, True)(_bgr(pixels), text_score=min_score)
    if found.boxes is None:
        return []
    height, width = pixels.shape[:2]
    return [
        Word(str(text), _upright(quad, width, height), float(score))
        for quad, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
    ]


def read_line(crop: Pixels, threads: int = 1) -> Line:
    """The text of a crop that holds one line and little else; no detection. Errors as `read_words`.

    Made for short text: a crop as wide as high costs a fifth of what the recogniser's usual strip costs.
    """
    if 0 in crop.shape:
        return Line("", 0.0)
    found = _engine(threads, False)(_bgr(crop))
    if not found.txts or not found.txts[0]:
        return Line("", 0.0)
    return Line(str(found.txts[0]), float(found.scores[0]))


@cache
def _engine(threads: int, detect: bool) -> Any:
    paths = {"Rec.model_path": _model(*RECOGNISER)}
    if detect:
        paths["Det.model_path"] = _model(*DETECTOR)
    from rapidocr import RapidOCR

    return RapidOCR(params={
        **paths,
        "Global.use_det": detect,
        "Global.use_cls": False,
        "Global.log_level": "critical",
        # the strip that every crop is padded to: for single letters a square is enough
        **({} if detect else {"Rec.rec_img_shape": [3, 48, 48]}),
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    })


def _model(name: str, expected: str) -> str:
    """Path of a model in the installed package; given a path, rapidocr never looks for one to download."""
    package = importlib.util.find_spec("rapidocr")
    if package is None or package.origin is None:
        raise ConfigError("reading text in pictures needs rapidocr: pip install 'medloom[ocr]'")
    path = Path(package.origin).parent / "models" / name
    if not path.is_file():
        raise ConfigError(
            f"the installed rapidocr does not carry {name}, and nothing is downloaded: pip install rapidocr==3.10.0"
        )
    if (found := sha256(path.read_bytes())) != expected:
        raise ConfigError(
            f"{name} in the installed rapidocr has SHA-256 {found[:12]}…, expected {expected[:12]}…: "
            "pip install --force-reinstall rapidocr==3.10.0"
        )
    return str(path)


def _bgr(pixels: Pixels) -> Pixels:
    colour = np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels[:, :, ::-1]
    return np.ascontiguousarray(colour)


def _upright(quad: Any, width: int, height: int) -> Box:
    corners = np.asarray(quad, float)
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    return max(0.0, float(x0)), max(0.0, float(y0)), min(float(width), float(x1)), min(float(height), float(y1))
