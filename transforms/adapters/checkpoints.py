"""Weights as tensors: read from safetensors, or from a torch file without running what is pickled in it.

The invariant: reading a file runs nothing of it. A torch file is read by torch's restricted unpickler, which knows
tensors, plain containers and numbers and refuses every other name; TorchScript is a program, so it is run only where
its hash is pinned, by a recipe or by us.

>>> weights = tensors(Path("fold_0/checkpoint_final.pth"))["network_weights"]
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from infra.errors import ConfigError
from infra.storage import file_sha256


def tensors(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds: name -> tensor, or whatever plain things its writer put beside them.

    Raises ConfigError for a file that is no weights, or that holds more than tensors, containers and numbers.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            held: Any = load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"{path.name}: no whole safetensors file ({error}); get it again") from error
        return dict(held)
    try:
        with torch.serialization.safe_globals(_numbers()):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        said = next((line for line in str(error).splitlines() if "GLOBAL" in line or "TorchScript" in line), str(error))
        raise ConfigError(
            f"{path.name}: it holds more than tensors, so to read it would run code of the file; nothing of it was "
            f"run ({said.strip()[:200]}). Where you trust it, load it elsewhere and save its tensors alone"
        ) from error
    if not isinstance(held, dict):
        raise ConfigError(f"{path.name}: it holds a {type(held).__name__}, not weights by name; save the state_dict")
    return held


def scripted(path: Path, sha256: str, device: str = "cpu") -> Any:
    """A TorchScript module in evaluation. It is a program: it runs only where its file has this hash (of its bytes).

    Raises ConfigError where it has another one; then nothing of it was read.
    """
    import torch

    if (found := digest(path)) != sha256:
        raise ConfigError(
            f"{path.name}: its SHA-256 is {found}, pinned is {sha256}; it is TorchScript, a program, and was not run. "
            "Get the right file, or pin this one where you trust it"
        )
    try:
        with warnings.catch_warnings():  # deprecated, but what such files were saved for
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigError(f"{path.name}: no TorchScript that this torch reads: {str(error)[:200]}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file; read once a process, and again when its size or time has changed."""
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def fill(network: Any, weights: Mapping[str, Any], where: str) -> Any:
    """The network with these weights, in evaluation. Raises ConfigError unless they are all it needs and no more."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{where}: the weights are not those of the network it describes: {told}. A network of its own needs its "
            "own program: run it by the expert command"
        ) from error
    return network.eval()


def _numbers() -> list[Any]:
    """NumPy's scalars: training frameworks leave losses beside the weights."""
    import numpy as np
    from numpy._core.multiarray import scalar

    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    return [(scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
