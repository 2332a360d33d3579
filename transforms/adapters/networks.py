"""Loading and running a model's folder through transformers.

The invariant: nothing is downloaded, no code of the folder is run, no weight is made up, and the same picture gets the
same answer on one machine: one thread on a processor, repeatable algorithms on a GPU, one picture at a time, and
PIL for its preparation, whatever else is installed. A batch that does not fit is halved, which is logged and counted;
it may move the last bits of an answer, for which scores are rounded. One thing that does not fit alone is a Terminal.

>>> network = opened("AutoModelForSemanticSegmentation", params)
>>> with steady():
...     logits = network.model(**network.prepared([pixels])).logits
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from PIL import Image

from infra.errors import ConfigError, Terminal
from infra.settings import be_quiet
from transforms.adapters.folders import ModelFolder, model_folder
from transforms.adapters.wanted import ModelParams
from transforms.decoded import Pixels
from transforms.knowledge.embedding import one_thread_an_operation

REQUIRES = {"torch": "torch", "transformers": "transformers"}
DIGITS = 3
"""Decimals of a score: more would only tell processors apart."""
KEPT = 4
"""Models that one process keeps loaded."""

_UNFIT = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
"""What transformers raises for a folder that does not fit; it has no error of its own."""

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass
class Network:
    """A loaded model and what prepares its pictures."""

    model: Any
    processor: Any
    """the image processor of transformers"""
    tokenizer: Any
    """None where the model reads no text"""
    folder: ModelFolder
    device: str
    dtype: Any
    fits: int | None = None
    """the largest batch that fitted after one did not"""
    halved: int = 0
    """how often a batch was halved for want of memory"""

    def prepared(self, pictures: Sequence[Pixels]) -> dict[str, Any]:
        """Tensors of pictures (of one size where there are several), on the model's device and in its precision."""
        ready = self.processor(images=[_rgb(pixels) for pixels in pictures], return_tensors="pt")
        return {name: self.placed(value) if hasattr(value, "to") else value for name, value in ready.items()}

    def placed(self, tensor: Any) -> Any:
        """A tensor on the model's device; one of fractions in its precision."""
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor.to(self.device)

    def batches(self, work: Callable[[Sequence[T]], R], things: Sequence[T], size: int) -> Iterator[R]:
        """`work` of things, `size` at a time, or as many as fit. Raises Terminal OUT_OF_MEMORY where one does not."""
        import torch

        done = 0
        while done < len(things):
            batch = things[done : done + min(size, self.fits or size)]
            try:
                result = work(batch)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    raise Terminal(
                        "OUT_OF_MEMORY", "the picture does not fit into the memory of the GPU; set half, or a smaller "
                        "input size in the model's preprocessor_config.json, or device cpu",
                    ) from None
                self.fits, self.halved = len(batch) // 2, self.halved + 1
                _log.warning("%s: out of memory; %d at a time from here on", self.folder.address, self.fits)
                continue
            done += len(batch)
            yield result


def opened(kind: str, params: ModelParams, *, text: bool = False) -> Network:
    """The model of `params.model`, loaded once a process.

    `kind` is the class of transformers that reads it. Raises ConfigError, with what to do, for a folder that is not of
    this kind, lacks weights, or cannot be read, and for a GPU that is not there.
    """
    folder = model_folder(params.model)
    return _opened(kind, folder, folder.sha256, params.device, params.half, text)


@lru_cache(maxsize=KEPT)
def _opened(kind: str, folder: ModelFolder, sha256: str, device: str, half: bool, text: bool) -> Network:
    be_quiet()
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging as talk

    check_device(device)
    talk.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtype = torch.float16 if half else torch.float32
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder.path, backend="pil", **local
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder.path, **local) if text else None
        model, report = getattr(transformers, kind).from_pretrained(
            folder.path, use_safetensors=True, dtype=dtype, output_loading_info=True, **local
        )
    except (*_UNFIT, SafetensorError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{folder.address}: transformers cannot load this {folder.model_type} model as {kind}: {told[0][:300]}"
        ) from error
    made_up = sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])
    if made_up:
        raise ConfigError(
            f"{folder.address}: the weights of {len(made_up)} parts are missing, such as {made_up[0]}, and would be "
            f"random; it is no {kind} that was trained. Name a folder with all of them"
        )
    return Network(model.eval().to(device), processor, tokenizer, folder, device, dtype)


def check_device(device: str) -> None:
    """Raises ConfigError for a GPU that is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; install a CUDA build of torch, or use device cpu")


@contextmanager
def steady() -> Iterator[None]:
    """No gradients, one thread, and on a GPU the algorithms that give the same answer twice."""
    import torch

    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with one_thread_an_operation(), torch.inference_mode(), exact:
        yield


def whole_picture(network: Network) -> None:
    """Raises ConfigError where the model is shown a part of a picture, or one with a rim: masks would lie beside it."""
    for step in ("do_center_crop", "do_pad"):
        if getattr(network.processor, step, None):
            raise ConfigError(
                f"{network.folder.address}: its preprocessor_config.json says {step}, so its masks would not lie on "
                f"the picture; set {step} to false and the size to height and width"
            )


def finite(values: Any) -> Any:
    """The values in 32 bits. Raises Terminal NOT_FINITE where there are NaN or infinity: 16 bits overflowed."""
    values = values.float()
    if not bool(values.isfinite().all()):
        raise Terminal("NOT_FINITE", "the model's answer holds NaN or infinity; set half to false")
    return values


def _rgb(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")
