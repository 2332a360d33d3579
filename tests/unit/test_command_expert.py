"""The command expert: real programs run on real files, and everything that a program can do wrong."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import ConfigError, Dropped, Terminal
from transforms.experts import subprocess_expert as expert

PIXELS = np.zeros((30, 50), np.uint8)
PIXELS[5:20, 10:40] = 200
IMAGE = {"modality": "CT", "anatomy": "chest", "view": "axial", "pixel_spacing": [0.5, 0.5], "group_id": "patient-7",
         "sample_id": "s1", "source_uri": "file:///secret"}
CLASSES = {"1": {"label": "liver", "role": "organ"}, "2": {"label": "cyst", "role": "lesion", "ontology_id": "X:2"}}
HEAD = """
import json, os, sys
import numpy as np
from PIL import Image
image, facts, out = sys.argv[1:4]
pixels = np.asarray(Image.open(image))
def save(values, name="labels.png"):
    Image.fromarray(values).save(os.path.join(out, name))
"""


def program(folder: Path, body: str, head: str = HEAD, **more: Any) -> expert.Params:
    """The expert for a Python program with this body."""
    script = folder / "run.py"
    script.write_text(head + body)
    options = {"output": "label_map", "classes": CLASSES, "version": "1", **more}
    return expert.Params(command=(sys.executable, str(script), "{image}", "{facts}", "{out}"), **options)


def found(params: expert.Params, pixels: np.ndarray = PIXELS, image: dict[str, Any] = IMAGE) -> list[Any]:
    return expert.find(pixels, image, params)


@pytest.mark.parametrize("values", ["uint8", "uint16", "palette"])
def test_a_label_map_becomes_regions_of_the_classes_it_names(tmp_path: Path, values: str):
    wanted = {"300": CLASSES["1"]} if values == "uint16" else CLASSES
    body = {
        "uint8": "save((pixels > 0).astype(np.uint8) + (pixels == 0) * np.uint8(77))",
        "uint16": "save((pixels > 0).astype(np.uint16) * np.uint16(300))",
        "palette": "p = Image.fromarray((pixels > 0).astype(np.uint8)).convert('P'); p.putpalette([9, 9, 9] * 256);"
                   "p.save(os.path.join(out, 'labels.png'))",
    }[values]
    (liver,) = found(program(tmp_path, body, classes=wanted))
    assert (liver.label, liver.role, liver.score) == ("liver", "organ", None)
    assert np.array_equal(liver.mask, PIXELS > 0), "a picture that is not square keeps its axes"


def test_masks_may_overlap_and_absent_ones_are_an_answer(tmp_path: Path):
    names = {"liver left": CLASSES["1"], "cyst": CLASSES["2"], "spleen": {"label": "spleen"}}
    body = """
save((pixels > 0) * np.uint8(255), 'liver left.png')
save(pixels, 'cyst.png')
save(pixels * 0, 'spleen.png')
"""
    regions = found(program(tmp_path, body, output="masks", classes=names))
    assert [r.label for r in regions] == ["cyst", "liver"]
    assert all(np.array_equal(r.mask, PIXELS > 0) for r in regions)
    assert found(program(tmp_path, "pass", output="masks", classes=names)) == []
    with pytest.raises(Terminal, match="NO_KNOWN_CLASS"):
        found(program(tmp_path, "save(pixels, 'Cyst.png')", output="masks", classes=names))


def test_boxes_are_read_in_pixels_and_unknown_labels_are_left_out(tmp_path: Path):
    def boxes(text: str) -> list[Any]:
        body = f"open(os.path.join(out, 'boxes.json'), 'w').write({text!r})"
        return found(program(tmp_path, body, output="boxes", classes={"nodule": CLASSES["2"]}))

    other = '{"label": "x", "box": [0, 0, 1, 1]}'
    (box,) = boxes('[{"label": "nodule", "box": [1, 2, 50, 30], "score": 0.98765}, ' + other + "]")
    assert (box.label, box.box, box.score, box.mask, box.ontology_id) == ("cyst", (1, 2, 50, 30), 0.988, None, "X:2")
    assert boxes("[]") == []
    for text, code in (
        ('[{"label": "nodule", "box": [1, 2, 60, 20]}]', "OUTPUT_SIZE"),
        ('[{"label": "nodule", "box": [5, 2, 5, 20]}]', "OUTPUT_SIZE"),
        ('[{"label": "nodule", "box": [1, 2, 3]}]', "OUTPUT_UNREADABLE"),
        ('[{"label": "nodule", "box": [NaN, 2, 3, 4]}]', "OUTPUT_"),
        ('[{"label": "nodule", "box": [1, 2, 3, 4], "score": 7}]', "OUTPUT_UNREADABLE"),
        ("{", "OUTPUT_UNREADABLE"),
    ):
        with pytest.raises(Terminal, match=code):
            boxes(text)


def test_a_program_is_told_the_facts_of_the_list_and_has_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("WEIGHTS_HOME", "/opt/weights")
    seen = tmp_path / "seen.json"
    body = f"""
json.dump({{"facts": json.load(open(facts)), "environment": dict(os.environ), "shape": pixels.shape,
           "here": os.listdir('.'), "arguments": sys.argv}}, open({str(seen)!r}, "w"))
save(pixels)
"""
    found(program(tmp_path, body, environment={"WEIGHTS": "$WEIGHTS_HOME/sat"}))
    told = json.loads(seen.read_text())
    assert told["facts"] == {"modality": "CT", "anatomy": "chest", "view": "axial", "spacing": [0.5, 0.5]}
    assert "sk-secret" not in seen.read_text() and "patient-7" not in seen.read_text()
    assert told["environment"]["WEIGHTS"] == "/opt/weights/sat" and told["environment"]["HF_HUB_OFFLINE"] == "1"
    assert told["environment"]["HOME"] != os.environ.get("HOME") and told["shape"] == [30, 50]
    assert not Path(told["arguments"][1]).exists(), "the folder is removed"


@pytest.mark.parametrize(("body", "code"), [
    ("sys.exit(3)", "COMMAND_FAILED: the program ended with exit code 3"),
    ("raise ValueError('/home/someone')", "COMMAND_FAILED: the program ended with exit code 1"),
    ("import signal; os.kill(os.getpid(), signal.SIGSEGV)", "COMMAND_FAILED: the program ended with signal SIGSEGV"),
    ("pass", "NO_OUTPUT"),
    ("os.symlink(image, os.path.join(out, 'labels.png'))", "NO_OUTPUT"),
    ("save(pixels.T.copy())", "OUTPUT_SIZE: labels.png is 30 x 50, the picture 50 x 30"),
    ("save(np.zeros((30, 50, 3), np.uint8))", "OUTPUT_UNREADABLE"),
    ("open(os.path.join(out, 'labels.png'), 'wb').write(open(image, 'rb').read()[:60])", "OUTPUT_UNREADABLE"),
    ("open(os.path.join(out, 'labels.png'), 'w').write('no picture')", "OUTPUT_UNREADABLE"),
    ("x = bytearray(3 << 30)", "COMMAND_FAILED"),
])
def test_what_a_program_does_wrong_costs_this_picture_and_says_no_place(tmp_path: Path, body: str, code: str):
    with pytest.raises(Terminal) as raised:
        found(program(tmp_path, body, memory_gb=2))
    assert str(raised.value).startswith(code)
    assert "/" not in str(raised.value), "messages are kept in shards: no place of this machine"


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path):
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.05)"
    body = f"import subprocess, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    with pytest.raises(Terminal, match=r"COMMAND_TIMEOUT: the program did not end within 1\.5 s"):
        found(program(tmp_path, body + "time.sleep(60)", "import sys\n", seconds=1.5))
    # a child may also outlive a program that ended well
    with pytest.raises(Terminal, match="NO_OUTPUT"):
        found(program(tmp_path, body + "time.sleep(0.5)", "import sys\n"))
    assert beats.stat().st_size > 1
    time.sleep(0.2)
    before = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == before


def test_no_shell_reads_the_command(tmp_path: Path):
    params = program(tmp_path, "save((sys.argv[4] == '; touch x && $(id) *') * (pixels > 0).astype(np.uint8))")
    params = params.model_copy(update={"command": (*params.command, "; touch x && $(id) *")})
    assert len(found(params)) == 1


def test_what_the_program_is_made_of_is_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script, weights = tmp_path / "run.py", tmp_path / "weights"
    weights.mkdir()
    (weights / "w.bin").write_bytes(b"1")
    monkeypatch.setenv("X_HOME", str(tmp_path))
    params = program(tmp_path, "save(pixels)", version=None, files=("$X_HOME/run.py", "$X_HOME/weights"))
    first = expert.ingredients(params)
    assert len(first) == 2 and first == expert.ingredients(params)
    (weights / "w.bin").write_bytes(b"22")
    second = expert.ingredients(params)
    assert second["file:0"] == first["file:0"] and second["file:1"] != first["file:1"]
    script.write_text("other")
    assert expert.ingredients(params)["file:0"] != first["file:0"]
    assert set(params.model_dump()) & {"files", "seconds", "memory_gb"} == set()
    with pytest.raises(ConfigError, match="nothing there"):
        expert.ingredients(params.model_copy(update={"files": ("$X_HOME/none",)}))


def test_wrong_options_are_said_before_anything_runs(tmp_path: Path):
    good = {"command": ("prog", "{image}", "{out}"), "output": "label_map", "classes": CLASSES, "version": "1"}
    for change, said in (
        ({"command": ("prog", "{image}")}, "{out}"),
        ({"command": ()}, "at least 1"),
        ({"version": None}, "files` or `version"),
        ({"classes": {"liver": {"label": "liver"}}}, "values 1 to 65535"),
        ({"classes": {"../x": {"label": "liver"}}, "output": "masks"}, "a file's name"),
        ({"output": "boxes", "trust": "boundary"}, "no boundary"),
        ({"classes": {"1": {"label": "liver", "role": "orgam"}}}, "organ"),
    ):
        with pytest.raises(ValueError, match=said):
            expert.Params(**{**good, **change})
    with pytest.raises(ConfigError, match="no such program"):
        expert.ingredients(expert.Params(**{**good, "command": ("no-such-program-at-all", "{image}", "{out}")}))
    with pytest.raises(ConfigError, match="no such program"):
        found(expert.Params(**{**good, "command": ("no-such-program-at-all", "{image}", "{out}")}))


def test_the_card_follows_the_output_and_is_kept_to(tmp_path: Path):
    params = program(tmp_path, "save(pixels)", modalities=("CT",))
    assert (expert.card(params).trust, [c.value for c in expert.card(params).classes]) == ("boundary", [1, 2])
    boxes = program(tmp_path, "", output="boxes", classes={"nodule": CLASSES["2"]})
    assert (expert.card(boxes).trust, expert.card(boxes).family) == ("box", "detector")
    with pytest.raises(Dropped, match="looks at CT"):
        found(params, image={"modality": "US"})
