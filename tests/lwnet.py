"""W-Net in torch, with the parts named as in published lwnet checkpoints: what the ONNX graph is compared with.

Written from arXiv 2009.01907 and the names of the tensors; a checkpoint's `model_state_dict` loads strictly.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out))
        self.block = nn.Sequential(
            nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out),
        )

    def forward(self, x: Any) -> Any:
        return self.block(x) + self.shortcut(x)


class Up(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.up_layer = nn.ModuleDict({"block": nn.Sequential(nn.ConvTranspose2d(into, out, 2, stride=2))})
        self.conv_bridge_layer = nn.ModuleDict(
            {"block": nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out))}
        )
        self.conv_layer = Block(2 * out, out)

    def forward(self, x: Any, skip: Any) -> Any:
        return self.conv_layer(torch.cat([self.up_layer["block"](x), self.conv_bridge_layer["block"](skip)], 1))


class UNet(nn.Module):
    def __init__(self, into: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = Block(into, widths[0])
        self.down_path = nn.ModuleList(Block(a, b) for a, b in pairs)
        self.up_path = nn.ModuleList(Up(b, a) for a, b in reversed(pairs))
        self.final = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        skips = []
        for down in self.down_path:
            skips.append(x)
            x = down(nn.functional.max_pool2d(x, 2))
        for up in self.up_path:
            x = up(x, skips.pop())
        return self.final(x)


class WNet(nn.Module):
    def __init__(self, classes: int = 1, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.unet1 = UNet(3, classes, widths)
        self.unet2 = UNet(3 + classes, classes, widths)

    def forward(self, x: Any) -> Any:
        return self.unet2(torch.cat([x, self.unet1(x)], 1))


def write_checkpoint(path: Path, model: nn.Module) -> None:
    """A checkpoint of the published form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": {}, "stats": None}, path)
