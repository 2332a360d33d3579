"""A DICOM picture as ingest may show it: text in its pixels filled, or the file refused.

The invariant: what `without_text` gives back is the file as it was, or one whose areas of text are filled; whatever it
takes to decode and read the pixels happens in a child with limits (transforms/scans/guarded.py).
"""

from __future__ import annotations

import io
from typing import Any

from infra.errors import ConfigError, Terminal
from infra.plugins import why_unavailable
from transforms.deid.pixels import clean_pixels, needs_look
from transforms.pictures import ocr
from transforms.scans.deidentify import bad_values, open_dataset, quietly
from transforms.scans.guarded import Ended, limited


def without_text(data: bytes, dataset: Any) -> tuple[Any, bool]:
    """The dataset of a file, or one with filled pixels; and whether any were filled.

    Raises Terminal as `clean_pixels` does, and DECODE_LIMIT, DECODE_CRASHED; ConfigError where nothing can read text.
    """
    if not needs_look(dataset):
        return dataset, False
    if reason := why_unavailable(ocr):
        raise ConfigError(
            f"text in the pixels of private DICOM files is looked for, which {reason}; or set `ingest: {{burned_in: "
            "flag}` for a source whose pixels may be kept as they are"
        )
    try:
        filled: bytes | None = limited(_filled, data)
    except Ended as ended:
        code = "DECODE_CRASHED" if ended.how == "crashed" else "DECODE_LIMIT"
        raise Terminal(code, f"looking for text in the pixels ended the reader ({ended.how}); check the file") from None
    return (dataset, False) if filled is None else (open_dataset(filled), True)


def _filled(data: bytes) -> bytes | None:
    """The file with filled pixels; None where they may stay."""
    cleaned = clean_pixels(open_dataset(data), ocr.read_words)
    return as_bytes(cleaned.dataset) if cleaned.outcome == "mask" else None


def as_bytes(dataset: Any) -> bytes:
    """A dataset as a file. Raises Terminal DICOM_UNREADABLE."""
    file = io.BytesIO()
    with quietly():
        try:
            dataset.save_as(file, enforce_file_format=False)
        except bad_values() as error:
            name = type(error).__name__
            raise Terminal("DICOM_UNREADABLE", f"the header cannot be written again ({name})") from None
    return file.getvalue()
