"""A selection: the samples of one snapshot that an SQL condition picks, with everything said about them.

The list of sample ids is the reproducible thing: a snapshot's number and a condition (that is not itself random) pick
the same samples each time, and rows come in one order: by source, by shard, by place in the shard. `sha256` names the
set of samples alone, so it also stays when they are stored in other shards. Rows are streamed: memory holds the ids,
one row group of pictures, and what is said about the samples of one partition.

Under a licence policy, samples whose image does not fit are refused, and so are those of retracted articles; of the
samples that stay, labels, regions and texts that do not fit are left out. Null is unknown, and unknown fits `all` only.

>>> selection = Selection(home, where="modality = 'CT' AND width >= 512")
>>> len(selection), next(selection.rows()).caption(["global"])["text"]
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.catalog import CatalogError, reader
from catalog.licences import Policy, class_of
from catalog.schema import LAYERS
from infra import mirror
from infra.errors import ConfigError
from infra.inflight import in_order
from infra.keys import key
from infra.storage import file_sha256

ALL = Policy()
ABOUT = ("labels", "rois", "texts")
"""Layers that travel with a sample."""
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHARDS_ABOUT = """
SELECT other.layer, other.path, other.sha256 FROM shards mine
JOIN current_units ingest ON mine.unit = ingest.id
JOIN current_units unit ON unit.source = ingest.source AND unit.partition = ingest.partition
JOIN shards other ON other.unit = unit.id
WHERE mine.path = ? AND NOT unit.quarantined ORDER BY other.path
"""
"""What is said about a sample lies in shards of its own partition: no scan of whole layers for each shard."""
_JUDGED = """
SELECT i.sample_id, i.source, i.shard, i.article_id, i.licence_image, i.licence_annotation,
  coalesce(a.retracted, false) AS retracted
FROM picked i LEFT JOIN (SELECT article_id, bool_or(retracted) AS retracted FROM articles GROUP BY article_id) a
USING (article_id)
"""


@dataclass(frozen=True)
class Row:
    """One sample as an exporter sees it. Rows of each layer are in the order of the layer's key."""

    image: Mapping[str, Any]
    """its row of `images`, bytes included"""
    labels: Sequence[Mapping[str, Any]]
    rois: Sequence[Mapping[str, Any]]
    texts: Sequence[Mapping[str, Any]]
    copy: int = 0
    """which repeat of the sample in a mixture this is, from 0"""
    volume: Mapping[str, Any] | None = None
    """the row of `volumes` it is a slice of, where the selection was asked for `volumes`"""

    @property
    def id(self) -> str:
        return str(self.image["sample_id"])

    @property
    def name(self) -> str:
        """What files of the sample are called: its id, or a hash of it where an id from elsewhere could be a path."""
        name = self.id if _PLAIN.fullmatch(self.id) else key("name", self.id)
        return f"{name}-{self.copy}" if self.copy else name

    @property
    def suffix(self) -> str:
        """png, jpg, gif or webp, judged by the bytes."""
        head = bytes(self.image["image"]["bytes"][:4])
        for magic, suffix in _MAGIC:
            if head.startswith(magic):
                return suffix
        raise CatalogError(f"sample {self.id}: the stored image is no web format; `medloom verify` finds damage")

    def caption(self, kinds: Sequence[str]) -> Mapping[str, Any] | None:
        """The first text of the first kind that the sample has one of."""
        return next((t for kind in kinds for t in self.texts if t["kind"] == kind and t["text"].strip()), None)


@dataclass(frozen=True)
class Selection:
    """Which samples, of which snapshot, by which condition. Raises ConfigError when the condition is none."""

    home: Path
    where: str = "true"
    at: int | None = None
    policy: Policy = ALL
    pixels: bool | None = None
    """True: only samples whose image is open; False: only the others; None: both"""
    volumes: bool = False
    """rows come with the volume that they are slices of"""

    @cached_property
    def snapshot(self) -> int:
        """Number of the snapshot."""
        with reader(self.home, self.at) as con:
            (number,) = con.execute("SELECT number FROM snapshot").fetchone()
        if number is None:
            raise CatalogError(f"{self.home} has no snapshot, only refused builds; {self.home / 'builds'} says why")
        return int(number)

    @cached_property
    def _judged(self) -> tuple[pa.Table, Counter[str]]:
        """(shard, samples) of what is taken, one row a shard, ids in Arrow, which takes a third of what Python strings
        do; and how many samples were refused, by reason."""
        import duckdb

        with reader(self.home, self.snapshot) as con:
            try:
                # a relation's filter is parsed as one expression, so a condition cannot grow into another statement
                picked = con.view("images").filter(self.where).query("picked", _JUDGED)
                groups = picked.aggregate("licence_image, retracted, count(*) AS n", "licence_image, retracted")
                found = groups.order("licence_image, retracted").fetchall()
                taken = picked.filter(self._condition([code for code, _, _ in found]))
                by_shard = taken.aggregate("source, shard, list(sample_id) AS samples", "source, shard")
                table = by_shard.order("source, shard").project("shard, samples").to_arrow_table()
            except duckdb.Error as error:
                raise ConfigError(f"--where {self.where!r} is not a condition over images: {error}") from None
        refused: Counter[str] = Counter()
        for code, retracted, n in found:
            if not self.policy.fits(code):
                refused[f"image licence {code or 'unknown'}"] += n
            elif retracted and "all" not in self.policy.words:
                refused["retracted article"] += n
        return table, refused

    def _condition(self, codes: Sequence[str | None]) -> str:
        """SQL over columns of _JUDGED that is true of the samples taken."""
        fit = {
            code for code in codes
            if self.policy.fits(code) and self.pixels in (None, class_of(code) == "open")
        }
        named = ", ".join("'" + code.replace("'", "''") + "'" for code in sorted(c for c in fit if c is not None))
        either = [f"licence_image IN ({named})"] if named else []
        either += ["licence_image IS NULL"] if None in fit else []
        kept = "true" if "all" in self.policy.words else "NOT retracted"
        return f"({' OR '.join(either) or 'false'}) AND {kept}"

    @property
    def refused(self) -> Counter[str]:
        """Reason -> samples that the condition picks and the policy does not take."""
        return self._judged[1]

    def ask(self, sql: str) -> pa.Table:
        """The answer of the catalog to a SELECT of ours that may name `taken`: sample_id, source, shard, article_id,
        licence_image, licence_annotation of the samples taken."""
        with reader(self.home, self.snapshot) as con:
            picked = con.view("images").filter(self.where).query("picked", _JUDGED)
            codes = [code for (code,) in picked.project("licence_image").distinct().fetchall()]
            return picked.filter(self._condition(codes)).query("taken", sql).to_arrow_table()

    @property
    def shards(self) -> pa.Table:
        """(shard, samples): the shards of `images` in order, each with the ids taken of it, in no order."""
        return self._judged[0]

    def __len__(self) -> int:
        return sum(len(samples) for samples in self.shards["samples"])

    @property
    def bytes(self) -> int:
        """About how much the pictures take: their share of their shards."""
        sql = ("SELECT sum(s.bytes * t.n / s.rows) AS bytes FROM (SELECT shard, count(*) AS n FROM taken GROUP BY 1) t "
               "JOIN shards s ON s.path = t.shard")
        return int(self.ask(sql).to_pylist()[0]["bytes"] or 0)

    @property
    def sha256(self) -> str:
        """SHA-256 of the sample ids, sorted, a line feed after each."""
        digest = hashlib.sha256()
        ids = pc.list_flatten(self.shards["samples"])
        for sample in ids.take(pc.sort_indices(ids)):
            digest.update(f"{sample}\n".encode())
        return digest.hexdigest()

    def rows(self, skip: int = 0, pictures: bool = True) -> Iterator[Row]:
        """The samples in the order of their source, shard and place in the shard, without the first so many. Without
        pictures `image` is null and no pixels are read.

        Raises CatalogError when a shard is gone or does not hold a sample that the catalog says it holds.
        """
        shards = ((str(shard), ids.values) for shard, ids in zip(*self.shards.columns, strict=True))
        return self.read(shards, skip, pictures=pictures)

    def read(
        self, shards: Iterable[tuple[str, pa.Array]], skip: int = 0, copy: int = 0, pictures: bool = True
    ) -> Iterator[Row]:
        """The samples of these shards, as `rows` gives them."""
        def left() -> Iterator[tuple[str, pa.Array, int, str]]:
            passed = skip
            for shard, samples in shards:
                if passed < len(samples):
                    (known,) = con.execute("SELECT sha256 FROM shards WHERE path = ?", [shard]).fetchone()
                    yield shard, samples, passed, known
                passed = max(0, passed - len(samples))

        def opened(one: tuple[str, pa.Array, int, str]) -> tuple[str, pa.Array, int, Path]:
            shard, samples, passed, known = one
            return shard, samples, passed, self._file(shard, known)

        with reader(self.home, self.snapshot) as con:
            for shard, samples, passed, file in in_order(opened, left(), threads=1, ahead=1):
                about = {layer: self._about(con, shard, layer) for layer in ABOUT}
                volumes = self._about(con, shard, "volumes") if self.volumes else {}
                missing = len(samples) - passed
                for image in self._images(file, samples, passed, pictures):
                    said = {layer: rows.get(image["sample_id"], []) for layer, rows in about.items()}
                    row = self._row(image, said, copy)
                    (volume,) = volumes.get(image["volume_id"], (None,))
                    yield row if volume is None else replace(row, volume=volume)
                    missing -= 1
                if missing:
                    raise CatalogError(f"{shard} lacks {missing} of the samples picked; `medloom verify` says more")

    def _row(self, image: Mapping[str, Any], said: Mapping[str, list[dict[str, Any]]], copy: int) -> Row:
        """A row without what the policy does not take. A region found by an expert goes with the image."""
        labels, rois, texts = (said[layer] for layer in ABOUT)
        if "all" not in self.policy.words:
            fits = self.policy.fits
            if not fits(image["licence_annotation"]):
                labels, rois = [], [roi for roi in rois if roi["origin"] == "predicted"]
            texts = [text for text in texts if fits(text["licence"])]
        return Row(image, labels, rois, texts, copy)

    def parts_left_out(self) -> dict[str, int]:
        """Layer and licence -> rows about the samples taken that the policy leaves out."""
        found: dict[str, int] = {}
        for layer, licence, condition in (
            ("labels", "t.licence_annotation", "true"), ("rois", "t.licence_annotation", "origin <> 'predicted'"),
            ("texts", "l.licence", "true"),
        ):
            sql = (f"SELECT {licence} AS code, count(*) AS n FROM {layer} l JOIN taken t USING (sample_id) "
                   f"WHERE {condition} GROUP BY ALL ORDER BY ALL")
            for row in self.ask(sql).to_pylist():
                if not self.policy.fits(row["code"]):
                    found[f"{layer} under {row['code'] or 'an unknown licence'}"] = row["n"]
        return found

    def _images(self, path: Path, wanted: pa.Array, skip: int, pictures: bool) -> Iterator[dict[str, Any]]:
        """Rows of `images` by row group; groups without a wanted sample are not read."""
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["sample_id"])["sample_id"]
                picked = pc.indices_nonzero(pc.is_in(ids, wanted))
                passed = min(skip, len(picked))
                skip -= passed
                picked = picked[passed:]
                names = [n for n in file.schema_arrow.names if pictures or n != "image"]
                if len(picked):
                    table = file.read_row_group(group, columns=names)
                    images = table["image"] if pictures else None
                    facts = table.select([n for n in names if n != "image"]).take(picked).to_pylist()
                    del table
                    for place, row in zip(picked.to_pylist(), facts, strict=True):
                        # one at a time, since this copies the picture
                        yield row | {"image": images[place].as_py() if images is not None else None}

    def _about(self, con: Any, shard: str, layer: str) -> dict[str, list[dict[str, Any]]]:
        """sample_id -> its rows of a layer, for the partition of a shard of images; of `volumes`, volume_id -> it."""
        schema = LAYERS[layer].schema
        named = con.execute(_SHARDS_ABOUT, [shard]).fetchall()
        tables = [pq.read_table(self._file(path, known), schema=schema) for name, path, known in named if name == layer]
        found: dict[str, list[dict[str, Any]]] = {}
        if tables:
            order = [(name, "ascending") for name in LAYERS[layer].key]
            for row in pa.concat_tables(tables).sort_by(order).to_pylist():
                found.setdefault(row[LAYERS[layer].key[0]], []).append(row)
        return found

    def _file(self, shard: str, known: str) -> Path:
        """A shard on this machine, hashed: libraries that read Parquet trust what they read."""
        path = mirror.local(self.home / shard, known)
        if not path.is_file():
            raise CatalogError(f"{shard} is gone; build again to make it anew, or `medloom verify` to see what else is")
        if file_sha256(path) != known:
            raise CatalogError(f"{shard} is not what its manifest says; `medloom verify` says what else is not")
        return path
