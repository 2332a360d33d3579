"""Which rows an export takes, what it says about the others, and how it goes on after a kill."""

from __future__ import annotations

import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from exporthome import files
from makehome import Rows, make_home
from PIL import Image

from catalog.catalog import query
from catalog.exports import huggingface
from catalog.exports.mixture import Mixture
from catalog.licences import Policy, class_of
from catalog.selection import Selection
from flows.export import run_export
from infra.errors import ConfigError
from infra.keys import sha256

CODES = ("CC0-1.0", "CC-BY-NC-4.0", None, "LicenseRef-NIH-CXR")


def mixed_licences(rows: Rows) -> None:
    """Photographs under four licences; annotations of CT scans under none; a figure of a retracted article."""
    photos = [image for image in rows["images"] if image["modality"] == "XC"]
    for image, code in zip(photos, CODES, strict=True):
        image["licence_image"] = code
    for image in rows["images"]:
        image["licence_annotation"] = None if image["modality"] == "CT" else "CC-BY-4.0"
    dx = [image for image in rows["images"] if image["modality"] == "DX"]
    dx[0]["article_id"], dx[1]["article_id"] = "PMC1", "PMC2"
    rows["articles"][0].update(title="A\ttitle\nin two lines.", doi="10.1/x", journal="J", retracted=False)
    rows["articles"].append({"article_id": "PMC2", "source": "photos", "title": "Withdrawn", "retracted": True})
    next(t for t in rows["texts"] if t["sample_id"] == dx[2]["sample_id"] and t["kind"] == "global").update(
        text="word " * 300, licence=None,
    )
    next(t for t in rows["texts"] if t["sample_id"] == dx[3]["sample_id"] and t["kind"] == "global")["text"] = "a " * 80
    rows["checks"][0]["verdict"] = "fail"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("policy"), mixed_licences)


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


@pytest.mark.parametrize(
    ("licences", "taken", "refused"),
    [
        ("open", 8, {"image licence CC-BY-NC-4.0": 1, "image licence unknown": 1,
                     "image licence LicenseRef-NIH-CXR": 1, "retracted article": 1}),
        ("research", 9, {"image licence unknown": 1, "image licence LicenseRef-NIH-CXR": 1, "retracted article": 1}),
        ("open,licenseref-nih-cxr", 9, {"image licence CC-BY-NC-4.0": 1, "image licence unknown": 1,
                                        "retracted article": 1}),
        ("all", 12, {}),
    ],
)
def test_a_policy_refuses_rows_and_says_why(
    home: Path, tmp_path: Path, licences: str, taken: int, refused: dict[str, int]
) -> None:
    said = run_export(home, "true", "huggingface", tmp_path / "out", None, [], licences=licences)
    record = manifest(tmp_path / "out")
    assert record["written"] == taken and record["refused"] == refused and record["picked"] == 12
    assert sum(refused.values()) + taken == 12 and sum(record["licences"].values()) == taken
    assert said.startswith(f"{taken} of 12 samples") and ("refused" in said) == bool(refused)


def test_unknown_is_not_open_for_parts_either(home: Path, tmp_path: Path) -> None:
    """Labels and regions of CT scans have no licence: they stay out, and so does the one text under none."""
    run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    assert manifest(tmp_path / "out")["parts_left_out"] == {
        "labels under an unknown licence": 4, "rois under an unknown licence": 8, "texts under an unknown licence": 1,
    }
    for row in Selection(home, policy=Policy.of("open")).rows():
        given = row.image["modality"] != "CT"
        assert len(row.labels) == given and len(row.rois) == 2 * given
        assert all(text["licence"] == "CC-BY-4.0" for text in row.texts)
    every = [len(row.rois) for row in Selection(home).rows()]
    assert every == [2] * 12, "without a policy nothing is left out"


def test_nothing_that_fits_is_said_with_the_way_out(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes none of the 1 samples .* unknown.*--licences"):
        run_export(home, "licence_image IS NULL", "webdataset", tmp_path / "out", None, [])
    with pytest.raises(ConfigError, match="--licences: write open"):
        run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="open,")
    with pytest.raises(ConfigError, match="--pixels some: write one of"):
        run_export(home, "true", "webdataset", tmp_path / "out", None, [], pixels="some")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [("CC-BY-SA-4.0", "open"), ("mit", "open"), ("CC-BY-ND-4.0", "research"), ("CC-BY-NC-SA-3.0-IGO", "research"),
     ("LicenseRef-x", "other"), ("", "other"), (None, "unknown")],
)
def test_every_code_has_one_class(code: str | None, kind: str) -> None:
    assert class_of(code) == kind and Policy.of("all").fits(code)
    assert Policy.of("open").fits(code) == (kind == "open")


def test_works_are_named_and_issues_are_listed(home: Path, tmp_path: Path) -> None:
    run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
    lines = (tmp_path / "out" / "ATTRIBUTIONS").read_text().splitlines()
    assert "A title in two lines. J. https://doi.org/10.1/x. source scans. licence CC-BY-4.0. 1 images" in lines
    assert any("Withdrawn" in line and "RETRACTED" in line for line in lines)
    assert sum(int(line.split()[-2]) for line in lines) == 12
    issues = {i["issue"]: i for i in json.loads((tmp_path / "out" / "KNOWN_ISSUES.json").read_text())}
    assert issues["check evidence fails"]["rows"] == 1
    long = {name.split()[4]: i["rows"] for name, i in issues.items() if name.startswith("captions of more")}
    assert long == {"75": 2, "254": 1}


def test_pixels_of_open_rows_and_pointers_to_the_rest(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_export(home, "true", "huggingface", out, None, [], licences="all", pixels="open")
    assert "3 as pointers" in said and sorted(p.name for p in (out / "data").iterdir()) == ["open"]
    pointers = [json.loads(line) for line in (out / "pointers.jsonl").read_text().splitlines()]
    assert [p["licence_image"] for p in pointers] == [code for code in
            [r["licence_image"] for r in query(home, "SELECT licence_image FROM images ORDER BY source, shard, phash")
             .to_pylist()] if class_of(code) != "open"]
    held = {row.id: row for row in Selection(home).rows()}
    for pointer in pointers:
        row = held[pointer["sample_id"]]
        assert pointer["rois"] == list(row.rois) and pointer["texts"] == list(row.texts) and "image" not in pointer
        assert all(pointer[name] == value for name, value in row.image.items() if name != "image")
    only = tmp_path / "only"
    run_export(home, "modality = 'CT'", "webdataset", only, None, [], pixels="none")
    assert {p.name for p in only.iterdir()} == {
        "pointers.jsonl", "fetch.py", "manifest.json", "CHECKSUMS", "ATTRIBUTIONS", "KNOWN_ISSUES.json",
    }
    first = json.loads((only / "pointers.jsonl").read_text().splitlines()[0])
    assert first["volume"]["items"] == ["v0.nii"] and first["volume"]["spacing"] == [1, 1, 1]


def test_the_script_fetches_what_is_on_record_and_nothing_else(tmp_path: Path) -> None:
    def elsewhere(rows: Rows) -> None:
        rows["images"][0]["source_item"] = "../outside.png"
        photos = [image for image in rows["images"] if image["modality"] == "XC"]
        photos[2]["source_uri"] = f"http://127.0.0.1:{server.server_port}/good"
        photos[3]["source_uri"] = f"http://127.0.0.1:{server.server_port}/altered"

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data if self.path == "/good" else b"\x89PNG other")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = make_home(tmp_path, elsewhere)
        photos = sorted((r for r in Selection(home, "modality = 'XC'").rows()), key=lambda r: r.image["phash"])
        data = photos[2].image["image"]["bytes"]
        source = tmp_path / "source"
        (source / "XC").mkdir(parents=True)
        (source / "XC" / "0.png").write_bytes(photos[0].image["image"]["bytes"])
        (source / "XC" / "1.png").write_bytes(b"\x89PNG altered")
        run_export(home, "modality = 'XC' OR slice_index = 0", "llava", tmp_path / "out", None, [], pixels="none")
        script = [sys.executable, "-I", str(tmp_path / "out" / "fetch.py"), "--from", str(source)]
        done = subprocess.run([*script, "--download"], capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 1 and "2: fetched" in done.stdout, done
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "pixels").iterdir()} == {
        f"{p.name}.png": p.image["image"]["bytes"] for p in (photos[0], photos[2])
    }
    left = [json.loads(x)["reason"] for x in (tmp_path / "out" / "unresolved.jsonl").read_text().splitlines()]
    assert sorted(left) == [
        "a slice of a volume: build it with the recipe", "no file of this name and SHA-256 in the folders given",
        "what the address gives is not the file on record",
    ]


def test_a_mixture_repeats_and_draws_the_same_each_time(home: Path, tmp_path: Path) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text(
        "parts:\n- {where: \"modality = 'CT' -- scans\", weight: 2}\n"
        "- {where: \"modality IN ('CT', 'DX')\", weight: 0.5}\n- {where: \"modality = 'XC'\", weight: 1.5}\n"
    )
    taken = Mixture.read(mix).of(Selection(home))
    seen = [(row.id, row.copy, row.image["modality"]) for row in taken.rows()]
    assert len(seen) == len(set(seen)) == len(taken) and [c for _, c, _ in seen] == sorted(c for _, c, _ in seen)
    of = {m: [s for s in seen if s[2] == m] for m in ("CT", "DX", "XC")}
    assert len(of["CT"]) == 8 and 0 < len(of["DX"]) < 4 and 4 < len(of["XC"]) < 8
    for skip in (0, 1, 5, len(seen) - 1, len(seen)):
        assert [(row.id, row.copy, row.image["modality"]) for row in taken.rows(skip)] == seen[skip:]
    for name in ("a", "b"):
        run_export(home, "true", "webdataset", tmp_path / name, None, [], licences="all", mixture=mix)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert manifest(tmp_path / "a")["written"] == len(seen)
    mix.write_text("parts:\n- {where: \"true) OR (true\", weight: 1}\n")
    with pytest.raises(ConfigError, match="not a condition"):
        run_export(home, "true", "webdataset", tmp_path / "c", None, [], mixture=mix)
    mix.write_text("parts:\n- {where: \"true\", weight: 0}\n")
    with pytest.raises(ConfigError, match="no mixture"):
        run_export(home, "true", "webdataset", tmp_path / "c", None, [], mixture=mix)


def big(rows: Rows) -> None:
    for number, image in enumerate(rows["images"]):
        png = io.BytesIO()
        Image.effect_noise((700, 700), 90 + number).save(png, "PNG")
        data = png.getvalue() + sha256(b"%d" % number).encode()
        image["image"] = {**image["image"], "bytes": data}
    rows["texts"][:] = [t for t in rows["texts"] if t["sample_id"] != rows["images"][5]["sample_id"]]


KILLED = """
import os, signal, sys
from pathlib import Path
import catalog.selection as selection
import catalog.exports.huggingface as huggingface
from flows.export import run_export
whole, calls = selection.Selection._row, [0]
def dying(self, *args):
    calls[0] += 1
    if calls[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *args)
selection.Selection._row = dying
huggingface.GROUP_ROWS = 2
run_export(Path(sys.argv[1]), "true", sys.argv[4], Path(sys.argv[2]), None, ["shard_mb=1"], licences="all")
"""


def killed(home: Path, out: Path, at: int, format: str) -> None:
    script = [sys.executable, "-c", KILLED, str(home), str(out), str(at), format]
    assert subprocess.run(script, env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode == -signal.SIGKILL


def several_classes(rows: Rows) -> None:
    """Large pictures under three classes of licences, in turns."""
    big(rows)
    for number, image in enumerate(rows["images"]):
        image["licence_image"] = ("CC-BY-4.0", "CC-BY-NC-4.0", None)[number % 3]


@pytest.mark.parametrize(("format", "at"), [("huggingface", 3), ("huggingface", 14), ("croissant", 20)])
def test_a_killed_export_of_several_classes_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, at: int
) -> None:
    monkeypatch.setattr(huggingface, "GROUP_ROWS", 2)
    home, out = make_home(tmp_path, several_classes, per_modality=8), tmp_path / "out"
    run_export(home, "true", format, tmp_path / "straight", None, ["shard_mb=1"], licences="all")
    killed(home, out, at, format)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".out.unfinished").rglob("train-?????")}
    assert len(list((tmp_path / ".out.unfinished").glob(".progress*"))) == (at > 3)
    run_export(home, "true", format, out, None, ["shard_mb=1"], licences="all")
    again = {p.name.partition("-of-")[0]: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    assert files(out) == files(tmp_path / "straight") and kept.keys() <= again.keys()
    assert len(list(out.rglob("*.parquet"))) > 5


@pytest.mark.parametrize("at", [2, 7, 12])
def test_a_killed_export_goes_on_after_its_last_whole_file(tmp_path: Path, at: int) -> None:
    home = make_home(tmp_path, big)
    run_export(home, "true", "webdataset", tmp_path / "straight", None, ["shard_mb=1"], licences="all")
    whole = [p for p in (tmp_path / "straight").glob("*.tar")]
    assert len(whole) > 3
    out = tmp_path / "out"
    killed(home, out, at, "webdataset")
    draft = tmp_path / ".out.unfinished"
    kept = {p.name: p.stat().st_mtime_ns for p in draft.glob("*.tar")}
    assert (len(kept) > 0) == (at > 2) and not out.exists()
    run_export(home, "true", "webdataset", out, None, ["shard_mb=1"], licences="all")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "whole files are not written again"
    assert files(out) == files(tmp_path / "straight") and not draft.exists()


def test_another_export_does_not_go_on_where_this_one_stopped(tmp_path: Path) -> None:
    home = make_home(tmp_path, big)
    out = tmp_path / "out"
    killed(home, out, 7, "webdataset")
    assert list((tmp_path / ".out.unfinished").glob("*.tar"))
    run_export(home, "modality <> 'CT'", "webdataset", out, None, ["shard_mb=1"])
    run_export(home, "modality <> 'CT'", "webdataset", tmp_path / "straight", None, ["shard_mb=1"])
    assert files(out) == files(tmp_path / "straight")
