"""Pictures that are alike as views of one body part are: one coarse form, fine structure of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def scene(seed: int, size: int = 160) -> npt.NDArray[np.uint8]:
    """Alike coarse form for every seed (two dark fields in a bright one), lines and spots of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    plane = 150 - 70 * sum(np.exp(-(((x - cx) / 0.16) ** 2 + ((y - 0.5) / 0.3) ** 2)) for cx in (0.28, 0.72))
    for _ in range(120):
        cx, cy, width = (*rng.uniform(0, 1, 2), rng.uniform(0.006, 0.02))
        plane = plane + rng.uniform(-25, 25) * np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2)))
    grey: npt.NDArray[np.uint8] = np.clip(plane, 0, 255).astype(np.uint8)
    return grey
