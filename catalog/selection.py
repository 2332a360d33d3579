"""A selection: the samples of one snapshot that an SQL condition picks, with everything said about them.

The list of sample ids is the reproducible thing: a snapshot's number and a condition (that is not itself random) pick
the same samples each time, and rows come in one order: by source, by shard, by place in the shard. `sha256` names the
set of samples alone, so it also stays when they are stored in other shards. Rows are streamed: memory holds one row
group of pictures, what is said about the samples of two partitions, and a count for each shard; the ids wait in a file
(catalog/idlists.py), and questions that need more than MEMORY go on on the disk.

Under a licence policy, samples whose image does not fit are refused, and so are those of retracted articles; of the
samples that stay, labels, regions and texts that do not fit are left out. Null is unknown, and unknown fits `all` only.

>>> selection = Selection(home, where="modality = 'CT' AND width >= 512")
>>> len(selection), next(selection.rows()).caption(["global"])["text"]
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.catalog import CatalogError, reader
from catalog.fence import require_condition
from catalog.idlists import BATCH, IdLists, sha256_sorted, sorted_by
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
MEMORY = "512MB"
"""For a question about all samples, unless MEDLOOM_SQL_MEMORY says otherwise; beyond it, the disk is used. In so much,
DuckDB joined 25 million samples with as many groups; in 128 MB it gave up."""
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHARDS_ABOUT = """
SELECT 'images' AS layer, path, sha256 FROM shards WHERE path = $shard UNION ALL
SELECT other.layer, other.path, other.sha256 FROM shards mine
JOIN current_units ingest ON mine.unit = ingest.id
JOIN current_units unit ON unit.source = ingest.source AND unit.partition = ingest.partition
JOIN shards other ON other.unit = unit.id
WHERE mine.path = $shard AND NOT unit.quarantined AND other.layer <> 'images' ORDER BY path
"""
"""A shard of images, and those of its partition, in which all that is said about its samples lies."""
_JUDGED = """
SELECT i.sample_id, i.source, i.shard, i.article_id, i.licence_image, i.licence_annotation,
  coalesce(a.retracted, false) AS retracted
FROM picked i LEFT JOIN (SELECT article_id, bool_or(retracted) AS retracted FROM articles GROUP BY article_id) a
USING (article_id)
"""
_NUMBERED = pa.schema([("shard", pa.string()), ("number", pa.int32())])
_BY_SHARD = "SELECT n.number, t.sample_id FROM taken t JOIN numbered n USING (shard)"
_LEFT_OUT = """
SELECT 'labels' AS layer, t.licence_annotation AS code, count(*) AS n FROM labels JOIN taken t USING (sample_id)
  WHERE {annotation} GROUP BY ALL
UNION ALL SELECT 'rois', t.licence_annotation, count(*) FROM rois JOIN taken t USING (sample_id)
  WHERE {annotation} AND origin <> 'predicted' GROUP BY ALL
UNION ALL SELECT 'texts', x.licence, count(*) FROM texts x SEMI JOIN taken USING (sample_id)
  WHERE {text} GROUP BY ALL
ORDER BY ALL
"""
_About = dict[str, pa.Table]
"""Layer -> its rows about the samples of one partition."""


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

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """A connection such as catalog.reader gives, for questions about all samples, in little memory."""
        import duckdb

        memory = os.environ.get("MEDLOOM_SQL_MEMORY", MEMORY)
        with tempfile.TemporaryDirectory(prefix="medloom-") as spill:
            settings = {"memory_limit": memory, "temp_directory": spill, "threads": "1"}
            try:
                with reader(self.home, self.snapshot, settings) as con:
                    yield con
            except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
                raise CatalogError(
                    f"a question about --where {self.where!r} takes more than {memory} of memory, or more room than "
                    f"{spill} has: set MEDLOOM_SQL_MEMORY=4GB, or TMPDIR ({str(error).splitlines()[0]})"
                ) from None

    def _picked(self, con: Any) -> Any:
        """Relation: what the condition picks, with the columns of _JUDGED."""
        require_condition(con, self.where)
        # a relation's filter is parsed as one expression, so a condition cannot grow into another statement
        return con.view("images").filter(self.where).query("picked", _JUDGED)

    @cached_property
    def _judged(self) -> tuple[IdLists, list[tuple[str | None, bool, int]]]:
        """What is taken, by shard, and (image licence, whether retracted, samples) of all that the condition picks."""
        import duckdb

        lists = IdLists()
        with tempfile.TemporaryFile(prefix="medloom-") as file:
            with self._asking() as con:
                try:
                    picked = self._picked(con)
                    groups = picked.aggregate("licence_image, retracted, count(*) AS n", "licence_image, retracted")
                    found = groups.order("licence_image, retracted").fetchall()
                    taken = picked.filter(self._condition([code for code, _, _ in found]))
                    order = taken.project("source, shard").distinct().order("source, shard").fetchall()
                    shards = [shard for _, shard in order]
                    con.register("numbered", pa.table({"shard": shards, "number": range(len(shards))}, _NUMBERED))
                    rows = taken.query("taken", _BY_SHARD).to_arrow_reader(BATCH)
                    with pa.ipc.new_stream(file, rows.schema) as unsorted:
                        for batch in rows:
                            unsorted.write_batch(batch)
                except (duckdb.OutOfMemoryException, duckdb.IOException):
                    raise
                except (CatalogError, duckdb.Error) as error:
                    raise ConfigError(f"--where {self.where!r} is not a condition over images: {error}") from None
            file.seek(0)
            for batch in sorted_by("number", pa.ipc.open_stream(file), sum(n for *_, n in found)):
                runs, begun = pc.run_end_encode(batch["number"]), 0
                for number, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                    lists.add(shards[number], batch["sample_id"].slice(begun, end - begun))
                    begun = end
        return lists, found

    def _condition(self, codes: Sequence[str | None]) -> str:
        """SQL over columns of _JUDGED that is true of the samples taken."""
        fit = {
            code for code in codes
            if self.policy.fits(code) and self.pixels in (None, class_of(code) == "open")
        }
        kept = "true" if "all" in self.policy.words else "NOT retracted"
        return f"{_among('licence_image', fit)} AND {kept}"

    @property
    def refused(self) -> Counter[str]:
        """Reason -> samples that the condition picks and the policy does not take."""
        refused: Counter[str] = Counter()
        for code, retracted, n in self._judged[1]:
            if not self.policy.fits(code):
                refused[f"image licence {code or 'unknown'}"] += n
            elif retracted and "all" not in self.policy.words:
                refused["retracted article"] += n
        return refused

    def ask(self, sql: str) -> Iterator[dict[str, Any]]:
        """The answer of the catalog, row by row, to a SELECT of ours that may name `taken`: sample_id, source, shard,
        article_id, licence_image, licence_annotation of the samples taken."""
        codes = [code for code, _, _ in self._judged[1]]
        with self._asking() as con:
            taken = self._picked(con).filter(self._condition(codes))
            for batch in taken.query("taken", sql).to_arrow_reader(BATCH):
                yield from batch.to_pylist()

    @property
    def lists(self) -> IdLists:
        """The shards of `images` in order, each with the ids taken of it, in no order."""
        return self._judged[0]

    def __len__(self) -> int:
        return len(self.lists)

    @property
    def bytes(self) -> int:
        """About how much the pictures take: their share of their shards."""
        with reader(self.home, self.snapshot) as con:
            sizes = con.execute("SELECT path, bytes / rows FROM shards WHERE layer = 'images' AND rows > 0").fetchall()
        each = dict(sizes)
        return int(sum(n * each[shard] for shard, n in self.lists.counts))

    @property
    def sha256(self) -> str:
        """SHA-256 of the sample ids, sorted, a line feed after each."""
        return sha256_sorted([self.lists])

    def rows(self, skip: int = 0, pictures: bool = True) -> Iterator[Row]:
        """The samples in the order of their source, shard and place in the shard, without the first so many. Without
        pictures `image` is null and no pixels are read.

        Raises CatalogError when a shard is gone or does not hold a sample that the catalog says it holds.
        """
        return self.read(self.lists, skip, pictures=pictures)

    def read(self, lists: IdLists, skip: int = 0, copy: int = 0, pictures: bool = True) -> Iterator[Row]:
        """The samples of these lists, as `rows` gives them."""
        def left() -> Iterator[tuple[int, int, list[tuple[str, str, str]]]]:
            passed = skip
            for number, (shard, n) in enumerate(lists.counts):
                if passed < n:
                    yield number, passed, con.execute(_SHARDS_ABOUT, {"shard": shard}).fetchall()
                passed = max(0, passed - n)

        def opened(one: tuple[int, int, list[tuple[str, str, str]]]) -> tuple[str, pa.Array, int, Path, _About]:
            number, passed, files = one
            shard, ids = lists.counts[number][0], lists[number]
            (image,) = [self._file(path, known) for layer, path, known in files if layer == "images"]
            return shard, ids, passed, image, {layer: self._table(layer, files) for layer in layers}

        layers = (*ABOUT, "volumes") if self.volumes else ABOUT
        with reader(self.home, self.snapshot) as con:
            # hashed and read one ahead, in a thread: neither holds the interpreter
            for shard, samples, passed, file, tables in in_order(opened, left(), threads=1, ahead=1):
                about = {layer: _by_key(layer, table) for layer, table in tables.items()}
                del tables
                volumes = about.pop("volumes", {})
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
        if "all" in self.policy.words:
            return {}
        annotation, text = map(self._unfit, ("licence_annotation AS code FROM taken", "licence AS code FROM texts"))
        sql = _LEFT_OUT.format(annotation=_among("t.licence_annotation", annotation), text=_among("x.licence", text))
        found = self.ask(sql) if annotation or text else ()
        return {f"{row['layer']} under {row['code'] or 'an unknown licence'}": row["n"] for row in found}

    def _unfit(self, codes: str) -> list[str | None]:
        """Which of these licences the policy does not take."""
        return [row["code"] for row in self.ask(f"SELECT DISTINCT {codes}") if not self.policy.fits(row["code"])]

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

    def _table(self, layer: str, files: Sequence[tuple[str, str, str]]) -> pa.Table:
        """The rows of a layer in those of the shards (layer, path, SHA-256) that are of it, by the layer's key."""
        schema = LAYERS[layer].schema
        tables = [pq.read_table(self._file(path, known), schema=schema) for name, path, known in files if name == layer]
        return pa.concat_tables([schema.empty_table(), *tables]).sort_by([(k, "ascending") for k in LAYERS[layer].key])

    def _file(self, shard: str, known: str) -> Path:
        """A shard on this machine, hashed: libraries that read Parquet trust what they read."""
        path = mirror.local(self.home / shard, known)
        if not path.is_file():
            raise CatalogError(f"{shard} is gone; build again to make it anew, or `medloom verify` to see what else is")
        if file_sha256(path) != known:
            raise CatalogError(f"{shard} is not what its manifest says; `medloom verify` says what else is not")
        return path


def _by_key(layer: str, table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """sample_id -> its rows of a layer; of `volumes`, volume_id -> it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row[LAYERS[layer].key[0]], []).append(row)
    return found


def _among(column: str, codes: Collection[str | None]) -> str:
    """SQL that is true where a column is one of these; None is null."""
    named = [code for code in codes if code is not None]
    listed = ", ".join("'" + code.replace("'", "''") + "'" for code in sorted(named))
    either = [f"{column} IN ({listed})"] * bool(named) + [f"{column} IS NULL"] * (len(named) < len(codes))
    return f"({' OR '.join(either) or 'false'})"
