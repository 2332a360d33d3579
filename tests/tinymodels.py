"""Tiny model folders as transformers saves them, some with weights set by hand so that their answer is known.

A test module has the folders as fixtures when it imports them.
"""

from __future__ import annotations

import hashlib
import os
import socket
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody opens a connection."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model's folder needs no network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def saved(folder: Path, model: Any, processor: Any) -> str:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SegFormer whose weights are set so that red is class 1, blue class 2 and all else class 0."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    model = SegformerForSemanticSegmentation(SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[4], patch_sizes=[1], strides=[1],
        num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=4, num_labels=3,
        id2label={0: "nothing", 1: "red", 2: "blue"}, label2id={"nothing": 0, "red": 1, "blue": 2},
    ))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0)
        model.segformer.stages[0].patch_embeddings.proj.weight[:3, :, 0, 0] = torch.eye(3)
        model.decode_head.linear_projections[0].proj.weight.copy_(torch.eye(4))
        model.decode_head.linear_fuse.weight[:, :, 0, 0] = torch.eye(4)
        model.decode_head.classifier.weight[1, :3, 0, 0] = torch.tensor([9.0, -9.0, -9.0])
        model.decode_head.classifier.weight[2, :3, 0, 0] = torch.tensor([-9.0, -9.0, 9.0])
        model.decode_head.classifier.bias[0] = 4.0
    processor = SegformerImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.0] * 3, image_std=[1.0] * 3, resample=0
    )
    return saved(tmp_path_factory.mktemp("colours"), model, processor)


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A YOLOS of five queries whose heads say the same of every picture: class 0 at 0.9, in one place."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    model = YolosForObjectDetection(YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[64, 64],
        patch_size=16, num_detection_tokens=5, id2label={0: "nodule", 1: "mass"}, label2id={"nodule": 0, "mass": 1},
    ))
    with torch.no_grad():
        for layer, bias in (
            (model.class_labels_classifier.layers[-1], torch.tensor([0.9, 0.06, 0.04]).log()),
            (model.bbox_predictor.layers[-1], torch.tensor([0.25, 0.5, 0.2, 0.4]).logit()),
        ):
            layer.weight.zero_()
            layer.bias.copy_(bias)
    processor = YolosImageProcessorPil(size={"height": 64, "width": 64}, do_pad=False)
    return saved(tmp_path_factory.mktemp("yolos"), model, processor)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SAM of 40 thousand random weights that always thinks 0.7 of its second mask of three."""
    import torch
    from transformers import SamConfig, SamImageProcessorPil, SamModel

    torch.manual_seed(3)
    model = SamModel(SamConfig(
        vision_config={"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 64, "patch_size": 8, "mlp_dim": 32, "window_size": 0, "global_attn_indexes": [0],
                       "num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                             "iou_head_hidden_dim": 16, "num_multimask_outputs": 3, "iou_head_depth": 2},
    ))
    with torch.no_grad():
        head = model.mask_decoder.iou_prediction_head.proj_out
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.2, 0.1, 0.7, 0.3]))
    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
                                     mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16})
    return saved(tmp_path_factory.mktemp("sam"), model, processor)


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIPSeg of 96 thousand random weights that spells its prompts."""
    import torch
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer, ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("clipseg")
    letters = [*string.ascii_lowercase, *string.digits]
    tokens = [*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    model = CLIPSegForImageSegmentation(CLIPSegConfig(
        text_config={**small, "vocab_size": end + 1, "max_position_embeddings": 24, "bos_token_id": end - 1,
                     "eos_token_id": end, "pad_token_id": end},
        vision_config={**small, "image_size": 64, "patch_size": 16}, projection_dim=16, extract_layers=[0, 1],
        reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    ))
    CLIPTokenizer(vocab={t: n for n, t in enumerate(tokens)}, merges=[], model_max_length=24).save_pretrained(folder)
    return saved(folder, model, ViTImageProcessorPil(size={"height": 64, "width": 64}))


def flag(height: int = 90, width: int = 140) -> np.ndarray:
    """A red field upper left, two blue ones right, on black."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[10:50, 20:70, 0] = 255
    picture[20:40, 100:130, 2] = 255
    picture[60:80, 100:130, 2] = 255
    return picture


COLOURS = {"red": {"label": "liver", "role": "organ"}, "2": {"label": "cyst", "role": "lesion", "ontology_id": "X:1"}}


def poisoned(path: Path, marker: Path) -> None:
    """A torch file that makes a folder when it is read as a pickle."""
    import torch

    class Poison:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    torch.save({"network_weights": Poison(), "weight": torch.zeros(1)}, path)


def instanseg_file(folder: Path) -> dict[str, Any]:
    """`model` and `pinned` of a TorchScript file that answers as InstanSeg does: what is bright, a number a column."""
    import warnings

    import torch

    class Bright(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pixel_size = 0.5

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            column = torch.arange(values.shape[3], device=values.device) // 40 + 1
            return (values.mean(1, keepdim=True) > 0.6) * column.float()

    path = folder / "instanseg.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Bright()).save(path)
    return {"model": str(path), "pinned": hashlib.sha256(path.read_bytes()).hexdigest()}


def small_pspnet(folder: Path) -> str:
    """Weights for fourteen outputs of one layer, under the names that parallel training gives."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 14, 1)
    torch.save({f"module.{name}": value for name, value in layer.state_dict().items()}, folder / "pspnet.pth")
    return str(folder / "pspnet.pth")
