"""A model's folder, in the layout of transformers: what it is, and whether it may be loaded.

The invariant: a folder is named by what lies in it, never by where it lies. Its identity is a hash of its weights and
its configuration; weights that are only there as pickles are refused, for a pickle can run code when it is read.

>>> model_folder("/models/medsam").sha256
'3f0c…'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from infra.errors import ConfigError
from infra.keys import canonical, sha256
from infra.storage import file_sha256, resolve, walk

WEIGHTS = ".safetensors"
DECIDES = {WEIGHTS, ".json", ".txt", ".model"}
"""Suffixes of files that decide an answer: weights, configuration, tokenizer."""
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"}
"""Suffixes of weights that are refused; where safetensors lie beside them, they are not read."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that may be loaded. Make it with `model_folder`."""

    address: str
    path: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What its config.json says."""
        return _config(self.address, self.path)

    @property
    def model_type(self) -> str:
        """The family as transformers calls it: sam, clipseg, segformer …"""
        return str(self.config.get("model_type"))

    @property
    def labels(self) -> Mapping[int, str]:
        """Class number -> the model's own name of it. A configuration without names has two classes (transformers)."""
        named = self.config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
        return {int(number): str(name) for number, name in named.items()}

    @property
    def sha256(self) -> str:
        """Hash of the names and contents of all files that decide an answer; the files are read once a process."""
        return contents_sha256(self.path, DECIDES)


def model_folder(address: str) -> ModelFolder:
    """The folder of an address (a path, or pkg:PACKAGE/PATH). Raises ConfigError when it may not be loaded."""
    path = resolve(address)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{address}: no config.json in it, so it is not a model's folder in the layout of transformers; name the "
            "folder that `save_pretrained` wrote or that the hub's `snapshot` holds"
        )
    if (path / "adapter_config.json").exists():
        raise ConfigError(f"{address}: an adapter without its base model; `merge_and_unload` and save the whole")
    suffixes = {file.suffix for file in walk(path)}
    if WEIGHTS not in suffixes:
        if suffixes & PICKLES:
            raise ConfigError(
                f"{address}: its weights are a pickle or the like, which can run code when it is read; convert them: "
                "load the model where that does no harm and `save_pretrained` it, which writes model.safetensors"
            )
        raise ConfigError(f"{address}: no *{WEIGHTS} in it; download the weights first")
    folder = ModelFolder(address, path)
    _check_index(folder)
    return folder


def _check_index(folder: ModelFolder) -> None:
    """Weights in several files: the index must name files of this folder, and safetensors only."""
    index = folder.path / INDEX
    if not index.is_file():
        return
    for name in sorted(set(_json(folder.address, index).get("weight_map", {}).values())):
        if Path(name).name != name or not name.endswith(WEIGHTS):
            raise ConfigError(f"{folder.address}: {INDEX} names {name!r}, which is no {WEIGHTS} file beside it")
        if not (folder.path / name).is_file():
            raise ConfigError(f"{folder.address}: {name} is missing, though {INDEX} names it; download it again")


def _config(address: str, path: Path) -> Mapping[str, Any]:
    return _json(address, path / "config.json")


def _json(address: str, path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{address}: {path.name} is no JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{address}: {path.name} holds no JSON object; download it again")
    return found


def contents_sha256(path: Path, suffixes: set[str] | None = None) -> str:
    """Hash of the names and contents of a folder's files (of these suffixes), or of one file.

    Files are read once a process, and again when their size or time has changed. Hidden files are left out.
    """
    files = [file for file in walk(path) if suffixes is None or file.suffix in suffixes]
    root = path if path.is_dir() else path.parent
    return _hash(root, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _hash(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    return sha256(canonical([[path.relative_to(root).as_posix(), file_sha256(path)] for path, _, _ in files]))
