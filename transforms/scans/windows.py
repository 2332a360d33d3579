"""Windows: which values of a scan are shown as black and as white.

The invariant: a window belongs to the whole scan, so one value gives one grey on every slice. Named CT windows, and
which one suits which anatomy, are data: `windows.yaml` beside this file.

>>> named_window("lung")
(-1350.0, 150.0)
>>> to_grey(np.array([-1350, -600, 150, 3000]), named_window("lung"))
array([  0, 128, 255, 255], dtype=uint8)
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from infra.errors import ConfigError
from infra.plugins import nearest
from transforms.decoded import Pixels

Window = tuple[float, float]
"""The values shown as grey 0 and as grey 255."""


def to_grey(values: npt.NDArray[Any], window: Window, inverted: bool = False) -> Pixels:
    """Values as 8-bit grey: linear between the window's ends, clipped, rounded half up; `inverted` swaps the ends.

    A window of no width is a threshold: values above it are white.
    """
    lower, upper = window
    if upper > lower:
        share = np.array(values, np.float64, order="C")  # changed in place: a new array a step costs page faults
        np.clip(share, lower, upper, out=share)
        share -= lower
        share /= upper - lower
    else:
        share = np.array(values > upper, np.float64, order="C")
    if inverted:
        np.subtract(1, share, out=share)
    share *= 255
    share += 0.5
    return share.astype(np.uint8)  # the fraction is cut off, so .5 was rounded up


def choose_windows(
    values: npt.NDArray[Any],
    modality: str | None,
    anatomy: str | None,
    own: Window | None,
    names: tuple[str, ...],
) -> dict[str, Window]:
    """The windows to show a scan in, by name; `values` are those of the whole scan, `own` is the file's own window.

    CT: the windows called `names`; else the one for its anatomy, else its own, else soft_tissue.
    Anything else: its own, else the percentiles of `percentile_window`.
    """
    if modality == "CT":
        if names:
            return {name: named_window(name) for name in names}
        if found := anatomy_window(anatomy or ""):
            return {found: named_window(found)}
    if own is not None:
        return {"own": own}
    if modality == "CT":
        return {"soft_tissue": named_window("soft_tissue")}
    return {"percentile": percentile_window(values)}


def named_window(name: str) -> Window:
    """A window of windows.yaml, in HU. Raises ConfigError for an unknown name."""
    known = _table()["windows"]
    if name not in known:
        raise ConfigError(
            f"windows: there is no window {name!r}{nearest(name, known)}; transforms/scans/windows.yaml lists them"
        )
    center, width = known[name]["center"], known[name]["width"]
    return center - width / 2, center + width / 2


def anatomy_window(anatomy: str) -> str | None:
    """Name of the window in which an anatomy ("Head and neck", "upper abdomen") is usually shown, or None."""
    words = " ".join(re.findall(r"[a-z]+", anatomy.lower()))
    table = _table()["anatomy"]
    return next((table[key] for key in sorted(table, key=len, reverse=True) if re.search(rf"\b{key}\b", words)), None)


def percentile_window(values: npt.NDArray[Any]) -> Window:
    """The 0.5 and 99.5 percentiles of the values that are not zero (BiomedParse's rule, over the volume)."""
    present = values[values != 0]
    lower, upper = np.percentile(present, (0.5, 99.5)) if present.size else (0.0, 0.0)
    return float(lower), float(upper)


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    return table
