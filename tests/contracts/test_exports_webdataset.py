"""WebDataset exports are opened by webdataset and open_clip, and every field is held against the catalog."""

from __future__ import annotations

import functools
import io
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporthome import all_held, caption, made_home, pixels, row  # noqa: F401
from PIL import Image

from catalog.exports import webdataset
from flows.export import run_export
from infra.keys import sha256

uses_webdataset = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves tars open


@uses_webdataset
def test_webdataset_is_read_by_its_library(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    import webdataset as wds

    said = run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
    assert said.startswith("11 of 12 samples of snapshot 1") and "1 left out: no caption" in said
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

    run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
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

    run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
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


@uses_webdataset
@pytest.mark.parametrize("training", [False, True])
def test_open_clip_itself_loads_every_sample(
    home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """`get_wds_dataset` of open_clip_train. It imports torchvision for another kind of data, which is not needed."""
    pytest.importorskip("torch")
    stand_in = types.ModuleType("torchvision")
    stand_in.datasets = types.ModuleType("torchvision.datasets")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", stand_in.datasets)
    data = pytest.importorskip("open_clip_train.data")
    # it was written for webdataset <= 0.2.86, which marks no end of a file
    monkeypatch.setattr(data, "tar_file_expander", functools.partial(data.tar_file_expander, eof_value=None))

    run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
    shards = str(tmp_path / "out" / "{00000..00000}.tar")
    assert data.get_dataset_size(shards) == (11, 1)
    args = types.SimpleNamespace(
        train_data=shards, val_data=shards, train_num_samples=None, val_num_samples=None, dataset_resampled=False,
        train_data_upsampling_factors=None, seed=0, batch_size=1, workers=0, world_size=1,
    )
    found = data.get_wds_dataset(args, np.asarray, training, tokenizer=lambda text: [text])
    seen = sorted((text[0], np.asarray(image[0]).tobytes()) for image, text in found.dataloader)
    assert seen == sorted((str(caption(s)), pixels(s["image"]["bytes"]).tobytes()) for s in held.values() if caption(s))
    if training:
        assert found.dataloader.num_samples == 11
