"""The house: imports run one way, heavy libraries stay in their rooms, importing costs little, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "infra": set(),
    "catalog": {"infra"},
    "connectors": {"catalog", "infra"},
    "transforms": {"catalog", "infra"},
    "flows": {"connectors", "transforms", "catalog", "infra"},
}
ONLY_IN = {
    "prefect": "flows/",
    "ray": "infra/runner.py",
    "great_expectations": "catalog/checks.py",
    "openai": "infra/llm.py",
    "boto3": "infra/s3.py",
}
HEAVY = {
    "prefect", "ray", "great_expectations", "openai", "torch", "sentence_transformers", "SimpleITK", "pydicom", "scipy",
    "boto3", "duckdb", "pandas", "nibabel", "lxml", "rapidocr", "onnxruntime", "openslide", "cv2",
    "onnx", "transformers", "safetensors", "skimage", "cc3d", "bm25s", "faiss", "monai", "nnunetv2", "torchxrayvision",
}


def sources() -> list[Path]:
    return [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    room = place.partition("/")[0]
    for module in imports(path):
        top = module.partition(".")[0]
        if top in ROOMS:
            assert top == room or top in ROOMS[room], f"{place} may not import {module}"
        if top in ONLY_IN:
            assert place.startswith(ONLY_IN[top]), f"{place} imports {top}, which only {ONLY_IN[top]} may"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_is_cheap(room: str) -> None:
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sorted((ROOT / room).rglob("*.py"))]
    modules = [m.removesuffix(".__init__") for m in modules if m != "flows.flow" and "recipes" not in m]
    code = (
        "import importlib, sys, time\n"
        # what all rooms stand on is not what a module costs
        "import pyarrow, pyarrow.compute, pyarrow.parquet, numpy, pydantic, PIL.Image, stamina, typer, yaml\n"
        f"slowest = 0\nfor m in {modules!r}:\n"
        "    t = time.process_time(); importlib.import_module(m); slowest = max(slowest, time.process_time() - t)\n"
        "print(slowest)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(3)]
    assert runs[0].splitlines()[1] == "[]", f"importing {room} pulls in {runs[0].splitlines()[1]}"
    assert min(float(run.splitlines()[0]) for run in runs) < 0.3


def test_the_top_level_is_what_the_design_says() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages == {"flows", "connectors", "transforms", "catalog", "infra"}
