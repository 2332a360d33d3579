"""Something that is fetched in pieces, read as a file: for a few columns of a large Parquet file in a bucket.

The invariant: what is read is asked for at that moment and no more than that; nothing is kept.

>>> pq.ParquetFile(Pieces(lambda start, length: bucket.piece(key, start, length), size)).read(["sample_id"])
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any


class Pieces(io.RawIOBase):
    """`size` bytes, of which `piece` gives so many (length) from a place on (start)."""

    def __init__(self, piece: Callable[[int, int], bytes], size: int) -> None:
        self._piece, self._size, self._at = piece, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._piece(self._at, min(len(buffer), self._size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
