"""Pictures that other programs write: masks and label maps.

The invariant: a picture is read only when it is one channel on the grid it should have; what it would take to decode
one of another size is never paid.

>>> values = label_picture(out / "image_cp_masks.png", (512, 512))
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from infra.errors import Terminal

MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F")


def written(path: Path) -> Path:
    """The file. Raises Terminal NO_OUTPUT where the program did not write it, or wrote a link."""
    if path.is_symlink() or not path.is_file():
        raise Terminal("NO_OUTPUT", f"the program ended well but wrote no file {path.name} into {{out}}")
    return path


def label_picture(path: Path, size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """(height, width) whole numbers of a PNG or TIFF of one channel. Raises Terminal where it is anything else."""
    height, width = size
    try:
        with Image.open(written(path), formats=["PNG", "TIFF"]) as image:
            if image.size != (width, height):
                raise Terminal(
                    "OUTPUT_SIZE", f"{path.name} is {image.width} x {image.height}, the picture {width} x {height}; "
                    "the program must write on the grid of its input",
                )
            if image.mode not in MODES:
                raise Terminal("OUTPUT_UNREADABLE", f"{path.name} has the channels {image.mode}; write one")
            values = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise Terminal("OUTPUT_UNREADABLE", f"{path.name} is no whole picture; see what the program wrote") from error
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise Terminal("OUTPUT_UNREADABLE", f"{path.name} holds fractions; a label map has whole numbers")
    return values.astype(np.int32)
