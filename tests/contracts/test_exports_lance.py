"""Lance exports are opened by lance in another process, and every field is held against the catalog."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from exporthome import all_held, caption, made_home, noise, row  # noqa: F401
from makehome import make_home

from catalog.exports import huggingface
from catalog.exports import lance as exporter
from flows.export import run_export

pytest.importorskip("lance", reason="pylance comes with the extra lance")

READ = """
import sys, lance, pyarrow as pa
data = lance.dataset(sys.argv[1])
table = data.to_table()
assert data.version == 1 and data.count_rows() == len(table)
assert data.take([len(table) - 1]).to_pylist() == table.slice(len(table) - 1).to_pylist()
assert data.scanner(filter="modality = 'CT'", columns=["sample_id"]).to_table().num_rows == int(sys.argv[3])
with pa.ipc.new_file(sys.argv[2], table.schema) as file:
    file.write(table)
"""


def read(out: Path, scans: int) -> pa.Table:
    """The rows as another process sees them, which has none of our code."""
    copy = out.with_name("seen.arrow")
    subprocess.run([sys.executable, "-c", READ, str(out / "data.lance"), str(copy), str(scans)], check=True)
    return pa.ipc.open_file(copy).read_all()


def test_lance_reads_every_field(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    run_export(home, "true", "lance", tmp_path / "out", None, [], licences="all")
    seen = read(tmp_path / "out", 4)
    assert seen.schema.equals(huggingface.FIELDS)
    rows = {row["sample_id"]: row for row in seen.to_pylist()}
    assert set(rows) == set(held) and len(rows) == len(seen)
    for name, one in rows.items():
        kept = dict(held[name])
        assert one.pop("caption") == caption(kept)
        for layer in ("labels", "rois", "texts"):
            kept[layer] = [{k: v for k, v in r.items() if k != "sample_id"} for r in kept[layer]]
        assert one == kept
    listed = {line.split("  ")[1] for line in (tmp_path / "out" / "CHECKSUMS").read_text().splitlines()}
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out" / "data.lance").rglob("*.lance")} <= listed


def test_an_interrupted_one_is_no_dataset_and_goes_on(tmp_path: Path) -> None:
    import lance

    rows = [row(f"s{n:02d}", noise(n), f"{n}.png") for n in range(24)]
    params = exporter.Params().model_copy(update={"shard_mb": 0.04})

    def dying() -> Any:
        yield from rows[:17]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exporter.write(dying(), tmp_path, params)
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(str(tmp_path / "data.lance"))
    told = [json.loads(line) for line in (tmp_path / ".progress.jsonl").read_text().splitlines()]
    done = told[-1]["counts"]["written"]
    whole = {p: p.stat().st_mtime_ns for p in (tmp_path / "data.lance" / "data").iterdir()}
    assert 0 < done < 17 and len(told) > 2
    counts = exporter.write(iter(rows[done:]), tmp_path, params)
    data = lance.dataset(str(tmp_path / "data.lance"))
    seen = data.to_table(columns=["sample_id"])["sample_id"].to_pylist()
    assert counts.written == 24 and seen == [r.id for r in rows]
    now = {p: p.stat().st_mtime_ns for p in (tmp_path / "data.lance" / "data").iterdir()}
    assert len(now.items() & whole.items()) == len(told) and len(now) == len(data.get_fragments())


def test_equal_selections_give_equal_rows(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_export(home, "true", "lance", tmp_path / name / "out", None, [], licences="all")
    assert read(tmp_path / "a" / "out", 4).equals(read(tmp_path / "b" / "out", 4))
