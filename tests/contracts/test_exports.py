"""Every export is opened by the library that trains on it, and every field is held against the catalog."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from makehome import Rows, make_home
from PIL import Image
from pydantic import BaseModel

from catalog.catalog import query
from catalog.exports import Counts, huggingface, llava, webdataset
from catalog.schema import LAYERS
from catalog.selection import Row
from flows.export import run_export
from infra.errors import ConfigError
from infra.keys import sha256
from infra.plugins import plugins

uses_webdataset = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves tars open
HOSTILE = (
    'A <image> in "quotes",\nwith a line feed, a \ttab and a back\\slash.',
    "Ærøskøbing 肺结节 \u2028 \U0001fac1 e\u0301; </s> ### Human:",
    "'; DROP TABLE images; -- =1+1 | `x` <script>alert(1)</script> ../../etc/passwd",
    "<<image>image><image>",
)


def spoil(rows: Rows) -> None:
    """Captions nobody checked, every stored format, one sample without a caption, one without a licence."""
    captions = [t for t in rows["texts"] if t["kind"] == "global"]
    for text, hostile in zip(captions, HOSTILE, strict=False):
        text["text"] = hostile
    photos = [image for image in rows["images"] if image["modality"] == "XC"]
    formats: Sequence[tuple[str, dict[str, Any]]] = (("GIF", {}), ("JPEG", {}), ("WEBP", {"lossless": True}))
    for image, (format, options) in zip(photos, formats, strict=False):
        picture = Image.open(io.BytesIO(image["image"]["bytes"]))
        buffer = io.BytesIO()
        (picture.quantize(64) if format == "GIF" else picture).save(buffer, format, **options)
        suffix = {"JPEG": "jpg"}.get(format, format.lower())
        image["image"] = {"bytes": buffer.getvalue(), "path": f"{image['sample_id']}.{suffix}"}
        image["sha256"] = sha256(buffer.getvalue())
    silent = rows["images"][-1]["sample_id"]
    rows["texts"][:] = [t for t in rows["texts"] if t["sample_id"] != silent]
    rows["images"][0]["licence_image"] = None
    rows["rois"][0]["box"] = [-7, 4, 5000, 20]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("exports"), spoil)


@pytest.fixture(scope="module")
def held(home: Path) -> dict[str, dict[str, Any]]:
    """sample_id -> its columns of images, bytes included, and its rows of the other layers, as the catalog has them."""
    samples: dict[str, dict[str, Any]] = {}
    for shard in sorted((home / "shards" / "images").rglob("*.parquet")):
        for image in pq.read_table(shard).to_pylist():
            samples[image["sample_id"]] = {**image, "labels": [], "rois": [], "texts": []}
    for layer in ("labels", "rois", "texts"):
        names = ", ".join(f'"{n}"' for n in LAYERS[layer].schema.names)
        for row in query(home, f"SELECT {names} FROM {layer} ORDER BY ALL").to_pylist():
            samples[row["sample_id"]][layer].append(row)
    assert len(samples) == query(home, "SELECT count(*) AS n FROM images").to_pylist()[0]["n"] == 12
    return samples


def caption(sample: Mapping[str, Any]) -> str | None:
    return next((t["text"] for t in sample["texts"] if t["kind"] == "global"), None)


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@uses_webdataset
def test_webdataset_is_read_by_its_library(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    import webdataset as wds

    said = run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    assert said.startswith("11 of 12 samples of snapshot 1") and "1 left out without a caption" in said
    sizes = json.loads((tmp_path / "out" / "sizes.json").read_text())
    shards = [str(tmp_path / "out" / name) for name in sizes]
    raw = list(wds.WebDataset(shards, shardshuffle=False))
    decoded = list(wds.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert len(raw) == len(decoded) == sum(sizes.values()) == 11
    assert {s["__key__"] for s in raw} == {i for i, s in held.items() if caption(s)}
    for sample, seen in zip(raw, decoded, strict=True):
        kept = dict(held[sample["__key__"]])
        (suffix,) = {"png", "jpg", "webp", "gif"} & set(sample)
        bytes_, record = kept.pop("image")["bytes"], json.loads(sample["json"])
        assert sample["txt"].decode() == seen["txt"] == caption(kept)
        assert (seen[suffix] == pixels(bytes_)).all(), "the same pixels, seen by the library"
        assert record["sha256"] == sha256(sample[suffix])
        if not bytes_.startswith(b"GIF"):
            assert sample[suffix] == bytes_
        else:
            assert suffix == "png"
            kept["sha256"] = record["sha256"]
        assert record == kept


@uses_webdataset
def test_open_clip_sees_every_sample(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """The pipeline of open_clip_train/data.py: its filter, its decoder, its names, its use of sizes.json."""
    import webdataset as wds

    run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    shards = sorted(str(p) for p in (tmp_path / "out").glob("*.tar"))
    sizes = json.loads((tmp_path / "out" / "sizes.json").read_text())
    total = sum(int(sizes[Path(shard).name]) for shard in shards)

    def complete(sample: Mapping[str, Any]) -> bool:
        return "txt" in sample and any(name in sample for name in ("png", "jpg", "jpeg", "webp"))

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards), wds.tarfile_to_samples(), wds.select(complete), wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt", id="__key__"), wds.to_tuple("image", "text", "id"),
    )
    seen = {name: (image, text) for image, text, name in pipeline}
    assert len(seen) == total == 11
    for name, (image, text) in seen.items():
        assert text == caption(held[name])
        assert (np.asarray(image) == pixels(held[name]["image"]["bytes"])).all()


def test_tar_members_are_adjacent_safe_and_tell_no_time(home: Path, tmp_path: Path) -> None:
    import tarfile

    run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = tar.getmembers()
    for triple in zip(*[iter(members)] * 3, strict=True):
        keys, suffixes = zip(*(m.name.split(".") for m in triple), strict=True)
        assert len(set(keys)) == 1 and suffixes[1:] == ("txt", "json")
        assert all(m.mtime == 0 and m.uid == 0 and m.uname == "" and m.isreg() for m in triple)


def test_webdataset_cuts_shards_and_counts_each(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    rows = [row(f"s{i}", png.getvalue()) for i in range(4)]
    counts = webdataset.write(rows, tmp_path, webdataset.Params(shard_mb=2))
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"00000.tar": 2, "00001.tar": 2}
    assert counts.written == 4


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("how", ["folder", "files"])
def test_huggingface_datasets_reads_every_field(
    home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, streaming: bool, how: str
) -> None:
    import datasets

    out = tmp_path / "out"
    run_export(home, "true", "huggingface", out, None, [])
    assert [p.name for p in (out / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    what = {"path": str(out)} if how == "folder" else {"path": "parquet", "data_files": str(out / "data" / "*.parquet")}
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(**what, split="train", streaming=streaming, cache_dir=cache)
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["rois"].feature["mask"]["counts"] == datasets.Value("string")
    seen = {row["sample_id"]: row for row in loaded}
    assert set(seen) == set(held)
    for name, row in seen.items():
        kept = dict(held[name])
        assert (np.asarray(row.pop("image").convert("RGB")) == pixels(kept.pop("image")["bytes"])).all()
        assert row.pop("caption") == caption(kept)
        for layer in ("labels", "rois", "texts"):
            kept[layer] = [{k: v for k, v in r.items() if k != "sample_id"} for r in kept[layer]]
        assert row == kept
    undecoded = loaded.cast_column("image", datasets.Image(decode=False))
    for row in undecoded:
        assert row["image"] == held[row["sample_id"]]["image"]


def test_huggingface_card_and_files_are_what_the_hub_wants(home: Path, tmp_path: Path) -> None:
    import yaml

    run_export(home, "source = 'photos'", "huggingface", tmp_path / "out", None, ["split=validation"])
    _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc-by-4.0" and "CC-BY-4.0: 4 images" in text
    (entry,) = card["configs"][0]["data_files"]
    assert entry["split"] == "validation" and len(list((tmp_path / "out").glob(entry["path"]))) == 1
    meta = pq.read_metadata(next((tmp_path / "out" / "data").iterdir()))
    columns = [meta.row_group(0).column(i) for i in range(meta.num_columns)]
    packed = {c.path_in_schema: c.compression for c in columns}
    assert packed.pop("image.bytes") == packed.pop("image.path") == "UNCOMPRESSED"
    assert set(packed.values()) == {"ZSTD"}
    assert all(c.has_column_index or c.path_in_schema.startswith("image.") or c.statistics is None for c in columns)


def test_huggingface_cuts_row_groups_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "GROUP_BYTES", 400_000)
    rows = [row(f"s{i:03d}", noise(i)) for i in range(230)]
    huggingface.write(rows, tmp_path, huggingface.Params(shard_mb=1))
    paths = sorted((tmp_path / "data").iterdir())
    assert [p.name for p in paths] == [f"train-{n:05d}-of-{len(paths):05d}.parquet" for n in range(len(paths))]
    assert len(paths) > 1
    sizes = []
    for path in paths:
        meta = pq.read_metadata(path)
        sizes += [(meta.row_group(g).num_rows, meta.row_group(g).total_byte_size) for g in range(meta.num_row_groups)]
    assert sum(n for n, _ in sizes) == 230
    assert all(n <= 100 and size < 500_000 for n, size in sizes)


def test_llava_training_reads_every_turn(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """LazySupervisedDataset of llava/train/train.py: json.load, join of the image folder, roles, one image token."""
    out = tmp_path / "out"
    run_export(home, "true", "llava", out, None, [])
    records = json.loads((out / "llava.json").read_text(encoding="utf-8"))
    assert {r["id"] for r in records} == {i for i, s in held.items() if caption(s)}
    regions = 0
    for record in records:
        kept = held[record["id"]]
        with Image.open(out / "images" / record["image"]) as image:
            assert image.size == (kept["width"], kept["height"])
        assert (out / "images" / record["image"]).read_bytes() == kept["image"]["bytes"]
        turns = record["conversations"]
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [t["value"].count("<image>") for t in turns] == [1] + [0] * (len(turns) - 1)
        assert turns[0]["value"].startswith("<image>\n")
        assert turns[1]["value"] == str(caption(kept)).replace("<image>", "image")
        wanted = [t for t in kept["texts"] if t["kind"] == "region"]
        assert [t["value"] for t in turns[3::2]] == [t["text"] for t in wanted]
        boxes = {r["roi_id"]: r["box"] for r in kept["rois"]}
        for turn, text in zip(turns[2::2], wanted, strict=True):
            shares = [float(x) for x in re.findall(r"\d\.\d{3}", turn["value"])]
            sides = [kept["width"], kept["height"]] * 2
            true = [min(max(b / s, 0), 1) for b, s in zip(boxes[text["roi_ids"][0]], sides, strict=True)]
            assert shares == pytest.approx(true, abs=0.00051) and all(0 <= s <= 1 for s in shares)
            regions += 1
    assert regions == 11


def test_llava_varies_its_questions_by_sample_and_by_the_length_of_the_answer(home: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_export(home, "true", "llava", tmp_path / name, None, ["vary=true", "regions=false"])
    first, again = (json.loads((tmp_path / name / "llava.json").read_text()) for name in ("one", "two"))
    known = yaml.safe_load(llava.INSTRUCTIONS.read_text())
    asked = set()
    for record in first:
        question, answer = (turn["value"] for turn in record["conversations"][:2])
        kind = "brief" if len(answer.split()) < llava.BRIEF_WORDS else "detailed"
        assert question.removeprefix("<image>\n") in known[kind]
        asked.add(question)
    assert first == again and len(asked) > 1
    assert not any(llava.TOKEN in question for kind in known.values() for question in kind)


def test_llava_questions_cannot_break_the_format(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave <image> out"):
        run_export(home, "true", "llava", tmp_path / "out", None, ["question=<image> what?"])
    run_export(home, "true", "llava", tmp_path / "out", None, ["region_question=Braces {x} at {box} {0}?"])
    turns = json.loads((tmp_path / "out" / "llava.json").read_text())[0]["conversations"]
    assert turns[2]["value"].startswith("Braces {x} at [0.")


@pytest.mark.parametrize("format", sorted(plugins("exporter")))
def test_exporting_twice_gives_the_same_bytes(home: Path, tmp_path: Path, format: str) -> None:
    first, second = tmp_path / "a", tmp_path / "deep" / "b"
    run_export(home, "width > 10", format, first, None, [])
    shutil.copytree(home, tmp_path / "moved")
    run_export(tmp_path / "moved", "width > 10", format, second, 1, [])
    assert files(first) == files(second)
    listed = [line.split("  ", 1) for line in (first / "CHECKSUMS").read_text().splitlines()]
    hashes = {name: sha256(data) for name, data in files(first).items() if name != "CHECKSUMS"}
    assert hashes == {name: digest for digest, name in listed}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "CHECKSUMS"], cwd=first, check=True)
    record = json.loads((first / "manifest.json").read_text())
    ids = sorted(r["sample_id"] for r in query(home, "SELECT sample_id FROM images WHERE width > 10").to_pylist())
    assert record["samples_sha256"] == hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()
    assert record["picked"] == record["written"] + record["without_caption"] == len(ids)
    assert record["licences"]["unknown"] == 1 and sum(record["licences"].values()) == record["written"]


def noise(seed: int) -> bytes:
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(png, "PNG")
    return png.getvalue()


def row(sample: str, image: bytes, path: str = "x.png") -> Row:
    """A row as a home that is not ours might hold it."""
    facts = dict.fromkeys(LAYERS["images"].schema.names) | {"width": 60, "height": 60, "sha256": sha256(image)}
    text = {"sample_id": sample, "text_id": "t", "kind": "global", "text": "A text.", "roi_ids": []}
    labels = [{"sample_id": sample, "label_id": "../../l", "name": "../../../etc/cron.d/x", "value": "\0"}]
    return Row({**facts, "sample_id": sample, "image": {"bytes": image, "path": path}}, labels, [], [text])


@uses_webdataset
@pytest.mark.parametrize("format", sorted(plugins("exporter")))
@pytest.mark.parametrize("sample", ["../../escape", "/etc/escape", "a.b", "a/b", "C:\\x", "..", "", "a\nb", "é" * 300])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, format: str, sample: str) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    exporter = plugins("exporter")[format]
    counts = exporter.write([row(sample, noise(1), "../../a./../../b"), row("fine", noise(2))], out, exporter.Params())
    assert counts.written == 2
    assert {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*") if p.is_file()} == {("deep", "out")}
    if format == "webdataset":
        import webdataset as wds

        seen = [s for s in wds.WebDataset(str(out / "00000.tar"), shardshuffle=False)]
        assert len(seen) == 2 and all(re.fullmatch(r"[\w-]+", s["__key__"]) for s in seen)
        assert json.loads(seen[0]["json"])["sample_id"] == sample


@pytest.mark.parametrize("where", ["modality = 'nothing'", "false"])
def test_an_empty_selection_writes_nothing(home: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="no sample meets"):
        run_export(home, where, "webdataset", tmp_path / "out", None, [])
    assert list(tmp_path.iterdir()) == []


def test_a_selection_without_any_caption_writes_nothing(home: Path, tmp_path: Path) -> None:
    where = "sample_id NOT IN (SELECT sample_id FROM texts)"
    for format in ("webdataset", "llava"):
        with pytest.raises(ConfigError, match="needs captions"):
            run_export(home, where, format, tmp_path / "out", None, [])
    assert list(tmp_path.iterdir()) == []
    assert run_export(home, where, "huggingface", tmp_path / "out", None, []).startswith("1 of 1 ")


def test_what_is_there_is_never_touched(home: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match="is not empty"):
            run_export(home, "true", "llava", tmp_path / name, None, [])
    assert files(tmp_path) == {"full/mine": b"mine", "file": b"mine"}
    (tmp_path / "empty").mkdir()
    run_export(home, "true", "llava", tmp_path / "empty", None, [])
    assert (tmp_path / "empty" / "llava.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["shard_mbb=3"], "shard_mb"), (["shard_mb=0"], "greater"), (["shard_mb"], "key=value"),
        (["caption=[a"], "not YAML"),
    ],
)
def test_a_wrong_option_is_named(home: Path, tmp_path: Path, options: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_export(home, "true", "webdataset", tmp_path / "out", None, options)
    assert list(tmp_path.iterdir()) == []


class Broken:
    """An exporter that stops half-way or loses rows."""

    NAME = "broken"
    REQUIRES: Mapping[str, str] = {}
    Params = type("Params", (BaseModel,), {})

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def write(self, rows: Iterator[Row], out: Path, params: BaseModel) -> Counts:
        counts = Counts()
        for number, one in enumerate(rows):
            (out / one.name).write_bytes(b"half")
            if number == 3 and self.fails:
                raise OSError(28, "No space left on device")
            counts.written = 4
        return counts


@pytest.mark.parametrize(("fails", "error"), [(True, OSError), (False, RuntimeError)])
def test_an_exporter_that_fails_or_loses_rows_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, error: type[Exception]
) -> None:
    monkeypatch.setattr("flows.export.load", lambda kind, name: Broken(fails))
    with pytest.raises(error):
        run_export(home, "true", "broken", tmp_path / "out", None, [])
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_and_a_live_one_is_left_alone(home: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    (left / "images").mkdir(parents=True)
    (left / "images" / "half.png").write_bytes(b"half")
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another export is writing"):
        run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    assert (left / "images" / "half.png").exists()
    os.close(handle)
    run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00000.tar", "sizes.json", "manifest.json", "CHECKSUMS"}
    assert not left.exists()
