"""Hugging Face exports are opened by datasets, and every field is held against the catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from exporthome import all_held, caption, made_home, noise, pixels, row  # noqa: F401
from makehome import Rows, make_home

from catalog.exports import huggingface
from flows.export import run_export


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("how", ["folder", "files"])
def test_huggingface_datasets_reads_every_field(
    home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, streaming: bool, how: str
) -> None:
    import datasets

    out = tmp_path / "out"
    run_export(home, "true", "huggingface", out, None, [], licences="all")
    assert [p.name for p in (out / "data" / "open").iterdir()] == ["train-00000-of-00001.parquet"]
    cache = str(tmp_path / "cache")
    seen: dict[str, Any] = {}
    for kind, n in (("open", 11), ("unknown", 1)):
        files = str(out / "data" / kind / "*.parquet")
        what = {"path": str(out), "name": kind} if how == "folder" else {"path": "parquet", "data_files": files}
        loaded = datasets.load_dataset(**what, split="train", streaming=streaming, cache_dir=cache)
        assert isinstance(loaded.features["image"], datasets.Image)
        assert loaded.features["rois"].feature["mask"]["counts"] == datasets.Value("string")
        rows = {row["sample_id"]: row for row in loaded}
        assert len(rows) == n and {row["licence_image"] is None for row in rows.values()} == {kind == "unknown"}
        seen |= rows
        for one in loaded.cast_column("image", datasets.Image(decode=False)):
            assert one["image"] == held[one["sample_id"]]["image"]
    assert set(seen) == set(held)
    for name, one in seen.items():
        kept = dict(held[name])
        assert (np.asarray(one.pop("image").convert("RGB")) == pixels(kept.pop("image")["bytes"])).all()
        assert one.pop("caption") == caption(kept)
        for layer in ("labels", "rois", "texts"):
            kept[layer] = [{k: v for k, v in r.items() if k != "sample_id"} for r in kept[layer]]
        assert one == kept


def test_huggingface_card_and_files_are_what_the_hub_wants(home: Path, tmp_path: Path) -> None:

    run_export(home, "source = 'photos'", "huggingface", tmp_path / "out", None, ["split=validation"])
    _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc-by-4.0" and "`CC-BY-4.0`, open: 4 images" in text
    (entry,) = card["configs"][0]["data_files"]
    assert entry["split"] == "validation" and len(list((tmp_path / "out").glob(entry["path"]))) == 1
    meta = pq.read_metadata(next((tmp_path / "out" / "data" / "open").iterdir()))
    columns = [meta.row_group(0).column(i) for i in range(meta.num_columns)]
    packed = {c.path_in_schema: c.compression for c in columns}
    assert packed.pop("image.bytes") == packed.pop("image.path") == "UNCOMPRESSED"
    assert set(packed.values()) == {"ZSTD"}
    assert all(c.has_column_index or c.path_in_schema.startswith("image.") or c.statistics is None for c in columns)


def test_huggingface_cuts_row_groups_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "GROUP_BYTES", 400_000)
    rows = [row(f"s{i:03d}", noise(i)) for i in range(230)]
    huggingface.write(rows, tmp_path, huggingface.Params(shard_mb=1))
    paths = sorted((tmp_path / "data" / "unknown").iterdir())
    assert [p.name for p in paths] == [f"train-{n:05d}-of-{len(paths):05d}.parquet" for n in range(len(paths))]
    assert len(paths) > 1
    sizes = []
    for path in paths:
        meta = pq.read_metadata(path)
        sizes += [(meta.row_group(g).num_rows, meta.row_group(g).total_byte_size) for g in range(meta.num_row_groups)]
    assert sum(n for n, _ in sizes) == 230
    assert all(n <= 100 and size < 500_000 for n, size in sizes)


def test_the_card_is_valid_and_shows_no_markdown_of_a_source(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    def hostile(rows: Rows) -> None:
        for image in rows["images"]:
            image["licence_image"] = "LicenseRef-](http://x) <script>`\n# Title"
        rows["images"][0]["licence_image"] = "CC-BY-NC-4.0"

    home = make_home(tmp_path, hostile)
    run_export(home, "true", "huggingface", tmp_path / "out", None, [], licences="all")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other" and card.data.size_categories == ["n<1K"]
    kinds = [(c["config_name"], c.get("default", False)) for c in card.data.configs]
    assert kinds == [("research", True), ("other", False)]
    assert not {"<script>", "](", "\n# Title"} & {w for w in ("<script>", "](", "\n# Title") if w in card.text}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_croissant_is_valid_and_its_records_are_the_rows(
    home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")

    out = tmp_path / "out"
    run_export(home, "true", "croissant", out, None, [], licences="all")
    dataset = mlcroissant.Dataset(jsonld=str(out / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    said = dataset.metadata.to_json()
    assert {"rai:dataCollection", "rai:machineAnnotationTools", "rai:dataLimitations"} <= set(said)
    assert "texts: template@1" in json.dumps(said["rai:machineAnnotationTools"])
    seen = {}
    for kind in ("open", "unknown"):
        for record in dataset.records(kind):
            plain = {name.split("/")[-1]: value for name, value in record.items()}
            seen[plain["sample_id"].decode()] = plain
    assert set(seen) == set(held)
    for name, one in seen.items():
        assert (np.asarray(one["image"].convert("RGB")) == pixels(held[name]["image"]["bytes"])).all()
        assert (one["width"], one["height"]) == (held[name]["width"], held[name]["height"])
        assert one["sha256"].decode() == held[name]["sha256"]
        assert (one["caption"].decode() if one["caption"] else None) == caption(held[name])
