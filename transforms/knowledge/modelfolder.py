"""A folder that holds a model of sentence-transformers: looked over before anything in it is loaded.

The invariant: what is loaded runs no code of the folder's own. Weights in pickle files and modules that are not
sentence-transformers' own are refused, and the hash of the folder changes with all that decides an answer.

>>> len(contents_key(checked(resolve(DEFAULT_MODEL), DEFAULT_MODEL)))
24
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import ConfigError
from infra.keys import key

_DECIDES = {".safetensors", ".json", ".txt", ".model"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def checked(folder: Path, address: str) -> Path:
    """The folder itself. Raises ConfigError when loading it could run code: pickles, modules or classes of its own."""
    listed = modules(folder)
    for module in listed:
        if not str(module["type"]).startswith("sentence_transformers."):
            raise ConfigError(f"{address}: asks to run code of its own ({module['type']}); use another model")
        _no_pickles(folder / module["path"], address)
    if not listed:
        _no_pickles(folder, address)
    config = folder / "config.json"
    if config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8")):
        raise ConfigError(f"{address}: asks to run code of its own (auto_map in config.json); use another model")
    return folder


def modules(folder: Path) -> list[dict[str, Any]]:
    """What modules.json lists; nothing where there is no such file."""
    file = folder / "modules.json"
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return found


def weights_sha256(folder: Path, address: str) -> str:
    """SHA-256 of the weights; of several files, of one after the other in order of name."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ConfigError(f"{address}: no *.safetensors in it; download or convert the weights first")
    return _sha256(*files)


def contents_key(folder: Path) -> str:
    """Key of weights, tokenizer and configuration, by name and contents."""
    return key("model folder", contents(folder))


def contents(folder: Path) -> list[list[str]]:
    """[name, SHA-256] of each file that decides an answer, in order of name."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _DECIDES and path.is_file()]
    return [[path.relative_to(folder).as_posix(), _sha256(path)] for path in files]


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Torch works each operation on one thread meanwhile, so that sums come out the same on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _no_pickles(folder: Path, address: str) -> None:
    suffixes = {path.suffix for path in folder.glob("*")}
    if suffixes & _PICKLES and ".safetensors" not in suffixes:
        raise ConfigError(
            f"{address}: its weights are a pickle, which can run code when it is read; "
            "convert them to model.safetensors"
        )


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
