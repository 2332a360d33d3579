"""MDS exports are read by mosaicml-streaming where there is one, and by its layout alone; every field is compared.

The library pins other releases of numpy and transformers, so it has an environment of its own:

    uv venv streaming && uv pip install --python streaming mosaicml-streaming
    MEDLOOM_STREAMING=streaming/bin/python pytest tests/contracts/test_exports_mds.py
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporthome import all_held, caption, files, made_home, noise, row  # noqa: F401

from catalog.exports import mds
from flows.export import run_export

READ = """
import base64, json, sys
from streaming import StreamingDataset
data = StreamingDataset(local=sys.argv[1], batch_size=1, shuffle=False)
for n in range(len(data)):
    one = data[n]
    print(json.dumps({**one, "image": base64.b64encode(one["image"]).decode()}))
"""


def by_layout(out: Path) -> list[dict[str, Any]]:
    found = []
    for shard in json.loads((out / "index.json").read_text())["shards"]:
        data = (out / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"] and shard["column_names"] == sorted(shard["column_names"])
        (count,) = np.frombuffer(data, "<u4", 1)
        offsets = np.frombuffer(data, "<u4", count + 1, 4)
        assert count == shard["samples"] and offsets[-1] == len(data)
        for begin, end in itertools.pairwise(offsets):
            sizes = np.frombuffer(data, "<u4", len(shard["column_names"]), begin)
            at, one = int(begin) + 4 * len(sizes), {}
            for name, kind, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
                value = data[at : at + int(size)]
                one[name] = value if kind == "bytes" else json.loads(value) if kind == "json" else value.decode()
                at += int(size)
            assert at == end
            found.append(one)
    return found


def by_library(out: Path) -> list[dict[str, Any]]:
    import base64

    python = os.environ.get("MEDLOOM_STREAMING")
    if not python:
        pytest.skip("MEDLOOM_STREAMING names no Python with mosaicml-streaming, see the top of this file")
    said = subprocess.run([python, "-c", READ, str(out)], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [{**one, "image": base64.b64decode(one["image"])} for one in rows]


@pytest.mark.parametrize("read", [by_layout, by_library])
def test_every_field_is_read(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, read: Any) -> None:
    run_export(home, "true", "mds", tmp_path / "out", None, [], licences="all")
    seen = {one["sample_id"]: one for one in read(tmp_path / "out")}
    assert set(seen) == set(held)
    for sample, one in seen.items():
        kept = dict(held[sample])
        image = kept.pop("image")
        assert one["image"] == image["bytes"] and one["format"] == image["path"].rpartition(".")[2]
        assert one["caption"] == (caption(kept) or "") and one["record"] == kept


def test_an_interrupted_one_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    rows = [row(f"s{n:02d}", noise(n), f"{n}.png") for n in range(24)]
    params = mds.Params().model_copy(update={"shard_mb": 0.05})
    for name in ("straight", "out"):
        (tmp_path / name).mkdir()
    mds.write(iter(rows), tmp_path / "straight", params)

    def dying() -> Any:
        yield from rows[:17]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mds.write(dying(), tmp_path / "out", params)
    done = json.loads((tmp_path / "out" / ".progress.jsonl").read_text().splitlines()[-1])["counts"]["written"]
    assert 0 < done < 17
    assert mds.write(iter(rows[done:]), tmp_path / "out", params).written == 24
    made = {name: data for name, data in files(tmp_path / "out").items() if not name.endswith(".unfinished")}
    assert made == files(tmp_path / "straight") and len(by_layout(tmp_path / "out")) == 24
