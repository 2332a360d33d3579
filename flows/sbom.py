"""`medloom sbom`: a software bill of materials of what is installed here and medloom needs, as CycloneDX 1.6 JSON.

It lists medloom, the interpreter, every installed package that medloom reaches through requirements that hold here
(its extras among them), and the published weights that lie here, each with its licence as its author declares it.
Development tools, and what else shares the environment, are left out. The invariant: the same installation gives the
same bytes, so two of them can be compared; nothing is asked of the network, and no licence is guessed.

A package that is installed no longer tells the hash of the file it came from: that is what `lock.txt` holds. What it
does tell is the hash of each of its files; the property `medloom:files:sha256` is one hash over those.

    medloom sbom --out bom.json

Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import csv
import json
import platform
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra import weights
from infra.keys import canonical, sha256
from infra.storage import write_bytes

ROOT = "medloom"
HEAVY = ("deepbet", "monai", "nnunetv2", "torchxrayvision")
"""Libraries of heavy experts, which no requirement names (experts-heavy.txt)."""
_OURS = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")
"""Files beside a package that say how it was installed here, not what it is."""


def sbom(
    out: Annotated[Path | None, typer.Option(help="File to write; default: the terminal.")] = None,
) -> None:
    """Write a software bill of materials of what is installed and needed (CycloneDX 1.6, JSON)."""
    text = json.dumps(bill(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        write_bytes(out, text.encode())


def bill() -> dict[str, Any]:
    """The bill as a JSON value."""
    packages, needs = _reached()
    refs = {name: _purl(name, package.version) for name, package in packages.items()}
    parts = [_package(name, package) for name, package in sorted(packages.items()) if name != ROOT]
    body: dict[str, Any] = {
        "metadata": {"component": _package(ROOT, packages[ROOT]) | {"type": "application"}},
        "components": [_python(), *parts, *_weights()],
        "dependencies": [
            {"ref": refs[name], "dependsOn": sorted(refs[other] for other in needs[name])} for name in sorted(packages)
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, sha256(canonical(body)))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return head | body


def _reached() -> tuple[dict[str, Distribution], dict[str, set[str]]]:
    """Installed packages that medloom reaches, by name, and for each the names of those it needs itself."""
    root = distribution(ROOT)
    packages: dict[str, Distribution] = {ROOT: root}
    needs: dict[str, set[str]] = {ROOT: set()}
    asked: set[tuple[str, str]] = set()
    todo = [(ROOT, extra) for extra in ("", *(root.metadata.get_all("Provides-Extra") or ()))]
    beside = [package for package in distributions() if _named(package) in HEAVY or _is_plugin(package)]
    for package in beside:
        packages.setdefault(_named(package), package)
        needs.setdefault(_named(package), set())
        needs[ROOT] |= {_named(package)} - {ROOT}
        todo.append((_named(package), ""))
    while todo:
        name, extra = todo.pop()
        if (name, extra) in asked:
            continue
        asked.add((name, extra))
        for line in packages[name].requires or ():
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
                continue
            other = canonicalize_name(wanted.name)
            if other not in packages:
                try:
                    packages[other] = distribution(wanted.name)
                except PackageNotFoundError:  # of an extra that is not installed
                    continue
                needs[other] = set()
            needs[name].add(other)
            todo += [(other, part) for part in ("", *wanted.extras)]
    return packages, needs


def _named(package: Distribution) -> str:
    return canonicalize_name(package.metadata["Name"])


def _is_plugin(package: Distribution) -> bool:
    return any(point.group.startswith(f"{ROOT}.") for point in package.entry_points)


def _package(name: str, package: Distribution) -> dict[str, Any]:
    purl = _purl(name, package.version)
    part: dict[str, Any] = {
        "type": "library", "bom-ref": purl, "name": name, "version": package.version, "purl": purl,
    }
    if licences := list(_licences(package)):
        part["licenses"] = licences
    record = csv.reader((package.read_text("RECORD") or "").splitlines())
    files = sorted(f"{file} {digest}" for file, digest, *_ in record if digest and _is_its_own(file))
    if files and name != ROOT:  # ours may be installed in place, and changes
        part["properties"] = [{"name": "medloom:files:sha256", "value": sha256("\n".join(files).encode())}]
    return part


def _is_its_own(file: str) -> bool:
    folders, _, name = file.rpartition("/")
    return ".." not in folders.split("/") and name not in _OURS and not name.endswith(".pyc")


def _licences(package: Distribution) -> Iterator[dict[str, Any]]:
    """As declared: an SPDX expression (PEP 639), else the old field where it is one line, else the classifiers."""
    said = package.metadata.json
    if expression := said.get("license_expression"):
        yield {"expression": expression}
        return
    field = str(said.get("license") or "").strip()
    if field and field != "UNKNOWN" and "\n" not in field:
        yield {"license": {"name": field}}
        return
    for classifier in said.get("classifier") or ():
        kind, _, name = classifier.rpartition(" :: ")
        if kind.startswith("License"):
            yield {"license": {"name": name}}


def _weights() -> Iterator[dict[str, Any]]:
    """Published weights whose files lie here whole, by size; `medloom weights check` hashes them."""
    for name, entry in sorted(weights.table().items()):
        if weights.missing(name) is None:
            yield {
                "type": "machine-learning-model", "bom-ref": f"weights/{name}", "name": name,
                "description": entry.what, "licenses": [{"license": {"name": entry.licence}}],
                "components": [
                    {"type": "file", "bom-ref": f"weights/{name}/{file.name}", "name": file.name,
                     "hashes": [{"alg": "SHA-256", "content": file.sha256}]}
                    for file in entry.files
                ],
            }


def _python() -> dict[str, Any]:
    name, version = platform.python_implementation(), platform.python_version()
    purl = f"pkg:generic/{name.lower()}@{version}"
    return {"type": "platform", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{quote(version, safe='.')}"
