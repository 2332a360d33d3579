"""A real CLIP of 8 dimensions with random weights, saved by sentence-transformers, for tests that need an encoder."""

from __future__ import annotations

import string
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    pytest.importorskip("sentence_transformers")
    return make_clip(tmp_path_factory.mktemp("clip"), seed=0)


def make_clip(root: Path, seed: int) -> Path:
    """The folder of one with these random weights, made below `root`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits, *"&-.,"]
    tokens = [*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(
        text_config={**small, "vocab_size": end + 1, "max_position_embeddings": 77, "bos_token_id": end - 1,
                     "eos_token_id": end, "pad_token_id": end},
        vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8,
    )).save_pretrained(root / "plain")
    CLIPProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=CLIPTokenizer(vocab={t: n for n, t in enumerate(tokens)}, merges=[], model_max_length=77),
    ).save_pretrained(root / "plain")
    SentenceTransformer(str(root / "plain"), local_files_only=True).save(str(root / "model"))
    return root / "model"
