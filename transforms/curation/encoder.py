"""Pictures and texts to vectors of one space, by a model of the CLIP family that lies on this machine.

The invariant: a vector depends on its picture or text and the model alone, bit for bit on one kind of processor: each
goes through the model by itself and on one thread. Nothing is downloaded, no code of the model's folder is run, and
weights in pickle files are refused.

The model is a folder saved by sentence-transformers (it has a modules.json). A CLIP or SigLIP model in the layout of
transformers becomes one with `SentenceTransformer(FOLDER).save(NEW_FOLDER)`; one that sees pictures but reads no texts
(DINOv2) will do where only pictures are compared.

>>> Encoder("/models/clip-vit-b-32").picture(pixels).shape
(512,)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from infra.errors import ConfigError
from infra.plugins import why_unavailable
from transforms.decoded import Pixels
from transforms.knowledge import modelfolder
from transforms.knowledge.embedding import Device, Embedder, Vectors
from transforms.knowledge.modelfolder import one_thread_an_operation

REQUIRES: Mapping[str, str] = {"sentence_transformers": "medloom[embed]"}
LONGEST = 8
"""A strip longer than so many times its width is seen by its middle part only: made as large as a model wants its
shorter side, a line of pixels would fill the memory, and these models cut out the middle anyway."""


@dataclass(frozen=True)
class Encoder:
    """A model by its address: a folder, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded."""

    address: str
    device: Device = "cpu"

    @cached_property
    def fingerprint(self) -> str:
        """Key of all that decides a vector. Raises ConfigError when there is no model that is safe to load."""
        if reason := why_unavailable(sys.modules[__name__]):
            raise ConfigError(f"{self.address}: an encoder cannot run here: {reason}")
        return self._lying.fingerprint

    @cached_property
    def identity(self) -> str:
        """Key of weights, tokenizer and configuration: which model this is, wherever it lies and runs."""
        return modelfolder.contents_key(self._lying.folder)

    def picture(self, pixels: Pixels) -> Vectors:
        """(dimension,) float32 of length 1; of 8-bit pixels, grey or RGB. ConfigError where it sees no pictures."""
        return self._vector("image", Image.fromarray(_middle(pixels)).convert("RGB"))

    def text(self, text: str) -> Vectors:
        """The same of a text, as far as the model reads. ConfigError where it reads none."""
        return self._vector("text", text)

    def too_long(self, text: str) -> bool:
        """Whether the model reads only the beginning of a text."""
        tokens = self._lying.model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return len(tokens) > int(self._lying.model.max_seq_length)

    @cached_property
    def _lying(self) -> Embedder:
        return Embedder(self.address, device=self.device)

    def _vector(self, kind: str, thing: str | Image.Image) -> Vectors:
        if kind not in self._lying.model.modalities:
            has = ", ".join(self._lying.model.modalities)
            raise ConfigError(f"{self.address}: takes {has}, not {kind}: name a model of the CLIP family")
        with one_thread_an_operation():
            (vector,) = self._lying.model.encode([thing], normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vector, np.float32)


def _middle(pixels: Pixels) -> Pixels:
    """The picture, or of a strip its middle part."""
    longest = LONGEST * min(pixels.shape[:2])
    for axis, side in enumerate(pixels.shape[:2]):
        if side > longest:
            start = (side - longest) // 2
            pixels = pixels.take(range(start, start + longest), axis=axis)
    return np.ascontiguousarray(pixels)
