"""The books of a unit: items found inside an entry take its place, panels belong to what was kept, nothing is lost."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import BaseModel

from catalog.items import Item, Partition, Text
from catalog.manifest import Manifest
from catalog.schema import LAYERS
from catalog.shards import read
from infra.errors import Terminal
from infra.keys import key
from infra.plugins import plugins
from transforms.decoded import IngestParams
from transforms.ingest import Ingest, SourceTerms
from transforms.stage import NoParams, Outcome, Rows, SampleRows, each_sample
from transforms.unit import BookkeepingError, IngestUnit, StageUnit, Unit, Upstream, run_unit

NO_INGREDIENTS: dict[str, str] = {}


def png(grey: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Archive:
    """A connector whose entries are archives: what is in them shows when they are read."""

    NAME, VERSION, REQUIRES, Params = "archive", "1", {}, NoParams

    def __init__(self, holds: dict[str, Sequence[Item]]) -> None:
        self.holds = holds

    def read(self, partition: Partition, params: BaseModel) -> Iterator[Item]:
        for entry, _ in partition.contents:
            yield from self.holds[entry]


def item(entry: str, number: int, error: Exception | None = None) -> Item:
    files = {} if error else {"main": png(number)}
    return Item(f"{entry}#{number}", "image", entry, files, inside=entry, error=error)


def ingested(home: Path, holds: dict[str, Sequence[Item]], monkeypatch: pytest.MonkeyPatch, **terms: Any) -> Manifest:
    known = {**plugins("connector"), "archive": Archive(holds)}
    monkeypatch.setattr("infra.plugins.plugins", lambda kind: known if kind == "connector" else plugins(kind))
    partition = Partition("s", "all", tuple({} for _ in holds), tuple((entry, "0") for entry in holds))
    work = Ingest("s", "archive", NoParams(), IngestParams(), SourceTerms(**{"identifiers": "public", **terms}))
    return run_unit(IngestUnit(work, partition, "0" * 24), home, 1.0, None)


def test_items_found_inside_an_entry_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Item("c", "image", "c", {}, error=Terminal("NO_XML", "c has no XML"))
    bad = item("a", 3, Terminal("BAD", "a#3 is bad"))
    holds = {"a": [item("a", 1), item("a", 2), bad], "b": [item("b", 1)], "c": [broken]}
    made = ingested(tmp_path, holds, monkeypatch)
    assert (made.rows_in, made.kept, made.failed) == (5, 3, 2)
    rejects = read(tmp_path, made.shards, "rejects").to_pylist()
    assert [(r["item"], r["code"]) for r in rejects] == [("a#3", "BAD"), ("c", "NO_XML")]


def test_found_items_of_private_sources_are_pseudonyms_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds = {"Doe": [item("Doe", 1), item("Doe", 2, Terminal("BAD", "Doe#2 is bad"))]}
    made = ingested(tmp_path, holds, monkeypatch, identifiers="private")
    assert (made.kept, made.failed) == (1, 1)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert b"Doe" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        ({"a": [item("a", 1)], "b": []}, "never came out, such as b"),
        ({"a": [item("a", 1), item("a", 1)]}, "found twice|counted twice"),
        ({"a": [item("a", 1)], "b": [Item("a#1", "image", "b", {"main": png(3)}, inside="b")]}, "found twice"),
        ({"a": [item("a", 1), Item("a", "image", "a", {"main": png(2)})]}, "never put in"),
    ],
    ids=["an entry without items", "an item twice", "in two entries", "the entry beside its items"],
)
def test_books_that_do_not_balance_are_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: dict[str, Sequence[Item]], words: str
) -> None:
    with pytest.raises(BookkeepingError, match=words):
        ingested(tmp_path, holds, monkeypatch)
    assert not list(tmp_path.glob("manifests/**/*.json"))


def halves(lost: bool, sample: SampleRows, state: None) -> Rows:
    """A panel of each sample; of a parent that nobody kept where `lost`."""
    panel = key("panel", sample.id)
    row = {**sample.image, "sample_id": panel, "parent_id": "nobody" if lost else sample.id, "parent_box": [0, 0, 8, 4]}
    label = {"sample_id": panel, "label_id": "1", "name": "panel", "value": "A", "origin": "read"}
    return {"images": [row], "labels": [label]}


def cut(home: Path, monkeypatch: pytest.MonkeyPatch, lost: bool = False) -> Unit:
    first = ingested(home, {"a": [item("a", 1), item("a", 2)]}, monkeypatch)
    stage = each_sample("cut", "1", reads=("images",), writes=("images", "labels"), row=partial(halves, lost))
    return StageUnit("cut", stage, Partition("s", "all", (), ()), (Upstream("ingest", first.key),), "1" * 24)


def test_a_stage_may_cut_new_samples_from_those_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_unit(cut(tmp_path, monkeypatch), tmp_path, 1.0, None)
    assert (made.rows_in, made.kept) == (2, 2)
    panels, labels = (read(tmp_path, made.shards, layer) for layer in ("images", "labels"))
    assert len(set(panels["parent_id"].to_pylist())) == 2
    assert panels["sample_id"].to_pylist() == labels["sample_id"].to_pylist()


def test_an_image_cut_from_nothing_kept_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BookkeepingError, match="cut from no sample it kept"):
        run_unit(cut(tmp_path, monkeypatch, lost=True), tmp_path, 1.0, None)


def test_a_stage_that_forgets_a_sample_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = cut(tmp_path, monkeypatch)

    class Forgetful:
        name, version, reads, writes, params = "f", "1", ("images",), ("labels",), NoParams()
        ingredients = NO_INGREDIENTS
        pixels, volumes, open, concurrency = False, False, None, 1

        def __call__(self, tables: dict[str, pa.Table], state: Any) -> Outcome:
            kept = tables["images"]["sample_id"].to_pylist()[1:]
            return Outcome({"labels": LAYERS["labels"].table([])}, kept)

    with pytest.raises(BookkeepingError, match="never came out"):
        run_unit(StageUnit("f", Forgetful(), unit.partition, unit.upstream, "2" * 24), tmp_path, 1.0, None)


def test_answers_name_their_questions_and_equal_ones_stay_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Text("question", "Is it a liver?"), Text("question", "Is it bright?")
    texts = (first, Text("answer", "yes", about=first), second, Text("answer", "yes", about=second))
    one = Item("a", "image", "a", {"main": png(1)}, texts=texts)
    made = ingested(tmp_path, {"a": [one]}, monkeypatch)
    rows = read(tmp_path, made.shards, "texts").to_pylist()
    by_id = {row["text_id"]: row["text"] for row in rows}
    assert len(by_id) == 4
    told = [by_id[row["evidence"][0].removeprefix("text:")] for row in rows if row["kind"] == "answer"]
    assert told == ["Is it a liver?", "Is it bright?"]


def test_an_article_whose_every_figure_failed_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"article_id": "PMC1", "title": "All pictures are lost"}
    gone = Item("a#1", "figure", "a", {}, inside="a", error=Terminal("FILE_MISSING", "gone"), facts={"article": row})
    made = ingested(tmp_path, {"a": [gone]}, monkeypatch)
    assert [r["title"] for r in read(tmp_path, made.shards, "articles").to_pylist()] == ["All pictures are lost"]
