"""DICOM files opened so that none can take the process with it.

The invariant: what a small file may hold is read here, what is large or deflated is tried in a child with limits first.

>>> open_safely(Path("chest.dcm").read_bytes()).Modality
'DX'
"""

from __future__ import annotations

import contextlib
from typing import Any

from infra.errors import Terminal
from transforms.scans.deidentify import DEFLATED, bad_values, open_dataset, quietly, value
from transforms.scans.frames import mend_syntax
from transforms.scans.guarded import Ended, limited

SMALL = 2 << 20
"""Bytes whose elements cannot take more than some hundred MB, however they are nested."""


def open_safely(data: bytes) -> Any:
    """`open_dataset`, with the pixels' true transfer syntax, after a child has tried what may explode.

    A small file cannot hold enough elements to do harm: only what is large or deflated is tried. Raises also
    PARSE_LIMIT, PARSE_CRASHED.
    """
    if len(data) > SMALL or DEFLATED.encode() in data[:1024]:
        try:
            limited(_try, data)
        except Ended as ended:
            code = "PARSE_CRASHED" if ended.how == "crashed" else "PARSE_LIMIT"
            raise Terminal(code, f"reading the header ended the reader ({ended.how}); check the file") from None
    dataset = open_dataset(data)
    mend_syntax(dataset)
    return dataset


def _try(data: bytes) -> None:
    """Read a header as deep as it goes, where it is large."""
    dataset = open_dataset(data)
    if len(data) - len(value(dataset, "PixelData") or b"") > SMALL:
        with quietly():
            _walk(dataset)


def _walk(dataset: Any) -> None:
    for tag in list(dataset.keys()):
        with contextlib.suppress(*bad_values()):  # what cannot be read does no harm
            if dataset[tag].VR == "SQ":
                for inner in dataset[tag].value:
                    _walk(inner)
