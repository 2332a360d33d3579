"""What is installed is what was locked: hashes for all, no index named, no code when Python starts, a bill of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from flows.sbom import HEAVY, sbom

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "infra" / "locks").glob("*.txt"))
EXTRAS = ("embed", "demo", "experts", "llm", "ocr", "slides", "lake", "observe", "lance", "seg")
"""Those that `make` installs."""


def locked(path: Path) -> dict[str, tuple[str, int]]:
    """name -> version and number of hashes. A line that is neither a pin nor a hash fails."""
    found: dict[str, tuple[str, int]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if pin := re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+) \\", line):
            name = canonicalize_name(pin[1])
            found[name] = (pin[2], 0)
        else:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), f"{path.name}: {line}"
            found[name] = (found[name][0], found[name][1] + 1)
    return found


def pins(path: Path) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_pin_has_a_hash_and_no_host_is_named(path: Path) -> None:
    assert all(count for _, count in locked(path).values())


def test_the_locks_say_what_the_requirements_say() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    install, heavy, tools, image = (
        locked(ROOT / "infra" / "locks" / f"{name}.txt") for name in ("install", "heavy", "tools", "image")
    )
    constraints = pins(ROOT / "constraints.txt")
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    wanted += [line for extra in EXTRAS for line in project["project"]["optional-dependencies"][extra]]
    for line in wanted:
        need = Requirement(line)
        if need.name == "torch":
            assert "torch" not in install  # which file it is depends on the machine
            continue
        assert canonicalize_name(need.name) in install, f"{line} is not locked: make lock"
        assert need.specifier.contains(install[canonicalize_name(need.name)][0]), f"{line}: make lock"
    for name, (version, _) in {**install, **tools}.items():
        assert constraints.get(name) == version, f"{name}: constraints.txt and infra/locks differ: make lock"
    assert image.items() <= install.items(), "the image is not what is tested: make lock"
    assert {name: version for name, (version, _) in heavy.items()} == pins(ROOT / "experts-heavy.txt")
    assert set(HEAVY) <= set(heavy)


def test_make_installs_by_hash() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installs = re.findall(r"^\t.*pip install .*", makefile, re.M)
    by_hash = [line for line in installs if "--require-hashes" in line or "$(LOCKED)" in line]
    others = [line for line in installs if line not in by_hash]
    assert len(by_hash) == 3 and "--require-hashes" in re.findall(r"^LOCKED := .*", makefile, re.M)[0]
    assert all("--no-deps" in line and ("$(TORCH)" in line or "-e ." in line) for line in others), others


def wheel(folder: Path, code: str) -> tuple[Path, str]:
    """A wheel of the package `tiny`, and its SHA-256."""
    files = {
        "tiny.py": code,
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files["tiny-1.0.dist-info/RECORD"] = f"{record}tiny-1.0.dist-info/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_tampered_wheel_is_refused(tmp_path: Path, installer: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    if installer == "uv" and not uv.exists():
        pytest.skip("no uv beside this Python")
    command = [sys.executable, "-m", "pip", "--isolated"] if installer == "pip" else [str(uv), "pip"]
    lock, target = tmp_path / "lock.txt", tmp_path / "target"

    def install() -> subprocess.CompletedProcess[str]:
        how = ["--python", sys.executable] if installer == "uv" else []
        return subprocess.run(
            [*command, "install", *how, "--no-cache-dir", "--no-index", "--find-links", str(tmp_path / "links"),
             "--require-hashes", "--no-deps", "--target", str(target), "-r", str(lock)],
            capture_output=True, text=True, timeout=120,
        )

    _, digest = wheel(tmp_path / "links", "GOOD = True\n")
    lock.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    _, other = wheel(tmp_path / "links", "GOOD = False  # whoever took the account of its author over\n")
    refused = install()
    assert refused.returncode != 0 and other in refused.stderr and not (target / "tiny.py").exists()
    lock.write_text("tiny==1.0\n")
    assert install().returncode != 0 and not (target / "tiny.py").exists(), "a pin without a hash"
    wheel(tmp_path / "links", "GOOD = True\n")
    lock.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    assert install().returncode == 0 and (target / "tiny.py").read_text() == "GOOD = True\n"


def test_no_dependency_runs_code_when_python_starts() -> None:
    """Files *.pth, sitecustomize and usercustomize run in every Python: how stolen releases have stolen keys."""
    known = {"setuptools": "distutils-precedence.pth", "medloom": "__editable__"}
    ours = {name for path in LOCKS for name in locked(path)} | {"medloom", "torch"}
    owned = set()
    for package in distributions():
        name = canonicalize_name(package.metadata["Name"])
        for file in package.files or ():
            if file.suffix == ".pth" and len(file.parts) == 1:
                owned.add(file.name)
                assert name not in ours or file.name.startswith(known.get(name, "\0")), f"{name} brings {file}"
            assert name not in ours or file.name not in ("sitecustomize.py", "usercustomize.py"), f"{name}: {file}"
    folder = Path(next(p for p in sys.path if p.endswith("site-packages")))
    alone = {path.name for path in folder.glob("*.pth")} - owned - {"_virtualenv.pth"}
    assert not alone, f"no package owns {sorted(alone)}"


def test_the_bill_is_valid_complete_and_the_same_each_time(tmp_path: Path) -> None:
    import typer
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    app = typer.Typer()
    app.command()(sbom)
    text = CliRunner().invoke(app, []).output
    assert CliRunner().invoke(app, ["--out", str(tmp_path / "bom.json")]).exit_code == 0
    assert (tmp_path / "bom.json").read_text() == text
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    made = json.loads(text)
    parts = {part["name"]: part for part in made["components"]}
    assert {"prefect", "ray", "duckdb", "pyarrow", "botocore", "CPython"} <= set(parts)
    assert not {"ruff", "mypy", "playwright"} & set(parts), "what medloom does not need is not in its bill"
    assert parts["duckdb"]["purl"] == f"pkg:pypi/duckdb@{parts['duckdb']['version']}"
    silent = {name for name, part in parts.items() if not part.get("licenses")}
    assert silent <= {"CPython", "batchgenerators", "dynamic-network-architectures"}, "a text alone names no licence"
    needs = {entry["ref"]: entry["dependsOn"] for entry in made["dependencies"]}
    assert parts["botocore"]["purl"] in needs[parts["boto3"]["purl"]]
    assert {ref for refs in needs.values() for ref in refs} <= set(needs)
