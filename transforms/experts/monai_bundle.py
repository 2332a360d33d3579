"""Volume expert: a segmentation bundle of MONAI (configs/, models/), run in process on whole scans.

The invariant: a bundle's configuration is read as data, never run. MONAI's own ConfigParser imports whatever a
`_target_` names and evaluates every `$` expression, so a bundle is a program; here four of its entries are read
(network_def, preprocessing, inferer, postprocessing), a `_target_` is looked up in the lists below, the only expression
is a reference (@name), and all that a bundle's files cannot say that way is refused. Weights are tensors alone.

    - use: ground_volumes
      experts: [monai_bundle]
      options:
        monai_bundle:
          model: /models/spleen_ct_segmentation
          labels: {spleen: {label: spleen, role: organ}}    # names of metadata.json, channel_def; or own

The scan is shown in the orientation that the bundle's Orientationd asks for, else in `orientation`. Answers are carried
back to the scan's own grid by MONAI's inverse of its transforms (linear in the scores), then decided: the best class of
each voxel, or each class by itself (over `threshold`) where postprocessing says sigmoid. Cardoso et al.,
arXiv:2211.02701.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field

from infra.errors import ConfigError, Dropped
from infra.keys import canonical, sha256
from infra.settings import be_quiet
from infra.storage import resolve
from transforms.adapters.checkpoints import digest, fill, tensors
from transforms.adapters.configs import Plain, refuse
from transforms.adapters.networks import check_device, finite, steady
from transforms.adapters.scans import (
    Patch,
    ScanParams,
    Seen,
    refuse_scan,
    scan_card,
    scan_classes,
    shown,
    structures,
)
from transforms.adapters.wanted import Named
from transforms.experts.card import Card
from transforms.scans.volumes import Scan, Structure

NAME = "monai_bundle"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"torch": "torch", "monai": "monai"}
CARD = Card(
    family="label_map", trust="boundary", ndim=3, value_space="raw", licence_weights="as the model says",
    commercial=None, memory_gb=8,
)

NETWORKS = frozenset({
    "UNet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "SegResNet", "SegResNetDS", "VNet", "AttentionUnet", "UNETR",
    "SwinUNETR", "HighResNet",
})
"""monai.networks.nets that segment and fetch nothing."""
TRANSFORMS = frozenset({
    "EnsureTyped", "CastToTyped", "Orientationd", "Spacingd", "ScaleIntensityd", "ScaleIntensityRanged",
    "ScaleIntensityRangePercentilesd", "NormalizeIntensityd", "CropForegroundd", "SpatialPadd", "DivisiblePadd",
    "BorderPadd", "Resized",
})
"""monai.transforms that change values or the grid, and can be undone where they change the grid."""
READING = frozenset({"LoadImaged", "EnsureChannelFirstd", "AddChanneld", "ToTensord", "ToDeviced", "DeleteItemsd"})
"""Those that are left out: the scan has been read, and is one channel."""
INFERERS = frozenset({"SlidingWindowInferer", "SimpleInferer"})
WEIGHTS = ("model.safetensors", "model.pt")
KEY = "image"


class Params(ScanParams):
    """What a recipe may set for the monai_bundle expert."""

    config: str = Field("inference", description="name of the configuration in configs/, without its ending")
    threshold: float = Field(0.5, gt=0, lt=1, description="probability of a class that is told by itself (sigmoid)")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that may be run: what its files say, as data."""

    address: str
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    weights: Path

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bundle) and self.sha256 == other.sha256

    @cached_property
    def sha256(self) -> str:
        return sha256(canonical([self.metadata, self.config, self.weights.suffix, digest(self.weights)]))

    @property
    def plain(self) -> Plain:
        return Plain(self.address, self.config)

    @property
    def labels(self) -> dict[int, str]:
        """Channel -> its name; of a model of the best class, background is left out."""
        said = self._format("outputs").get("channel_def") or {}
        names = {int(number): str(name) for number, name in said.items() if str(number).isdigit()}
        if not names:
            raise ConfigError(f"{self.address}: metadata.json names no channels of the prediction (channel_def)")
        return {n: name for n, name in names.items() if self.overlapping or (n and name.lower() != "background")}

    @property
    def overlapping(self) -> bool:
        """Whether each class is told by itself."""
        steps = self._steps("postprocessing")
        return any(step.get("sigmoid") is True for _, step in steps)

    @property
    def preprocessing(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, step) for name, step in self._steps("preprocessing") if name not in READING]

    @property
    def orientation(self) -> str | None:
        """What the bundle's Orientationd asks for."""
        return next((step.get("axcodes") for name, step in self.preprocessing if name == "Orientationd"), None)

    @property
    def hounsfield(self) -> bool:
        given = self._format("inputs")
        return str(given.get("format", "")).lower() == "hounsfield" or str(given.get("modality", "")).upper() == "CT"

    def _format(self, side: str) -> Mapping[str, Any]:
        """The first input or output of network_data_format."""
        sides = self.metadata.get("network_data_format", {}).get(side, {})
        first: Any = next(iter(sides.values()), {}) if isinstance(sides, dict) else {}
        return first if isinstance(first, dict) else {}

    def _steps(self, entry: str) -> list[tuple[str, dict[str, Any]]]:
        """(name, arguments) of the transforms of an entry; expressions are left standing, for those we do not run."""
        composed = self.config.get(entry) or {}
        steps = composed.get("transforms", []) if isinstance(composed, dict) else []
        if isinstance(steps, str):
            steps = self.plain.referred(steps)
        found = []
        for step in steps if isinstance(steps, list) else []:
            if not isinstance(step, dict) or "_target_" not in step:
                raise ConfigError(f"{self.address}: {entry} holds {step!r:.80}, which is no transform")
            if step.get("_disabled_") is not True:
                found.append((str(step["_target_"]).removeprefix("monai.transforms."), dict(step)))
        return found


@dataclass
class Model:
    """A loaded bundle."""

    network: Any
    before: Any
    """Compose of monai"""
    window: Mapping[str, Any] | None
    """arguments of its sliding window; None: the whole scan at once"""
    patch: Patch
    device: str


def bundle_of(params: Params) -> Bundle:
    """The bundle of these parameters. Raises ConfigError when it may not be run."""
    root = resolve(params.model)
    metadata = _read(params.model, root / "configs" / "metadata.json")
    paths = [root / "configs" / f"{params.config}{ending}" for ending in (".json", ".yaml", ".yml")]
    config = _read(params.model, next((path for path in paths if path.is_file()), paths[0]))
    weights = next((root / "models" / name for name in WEIGHTS if (root / "models" / name).is_file()), None)
    if weights is None:
        raise ConfigError(f"{params.model}: no {' or '.join(WEIGHTS)} in its folder models")
    bundle = Bundle(params.model, metadata, config, weights)
    channels = bundle._format("inputs").get("num_channels", 1)
    if channels != 1:
        raise ConfigError(f"{params.model}: it reads {channels} channels, a scan has one; run it by the expert command")
    return bundle


def card(params: Params) -> Card:
    """What it finds with these parameters; a bundle of CT reads Hounsfield units of CT alone."""
    bundle = bundle_of(params)
    return scan_card(CARD, params, _classes(bundle, params), bundle.hounsfield)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the bundle. Raises ConfigError for a bundle or a class that is not there."""
    bundle = bundle_of(params)
    _classes(bundle, params)
    return {"model": bundle.sha256}


def segment(scan: Scan, params: Params) -> Iterator[Structure]:
    """One structure a class that is there. Raises Dropped for a scan it is not to see, Terminal where it fails."""
    refuse_scan(card(params), scan)
    bundle = bundle_of(params)
    classes = _classes(bundle, params)
    check_device(params.device)
    model = _opened(bundle, params.device)
    seen = shown(scan, bundle.orientation or params.orientation)
    mask = model.patch.fitting(lambda patch: _told(model, patch, seen, bundle, params.threshold), bundle.address)
    yield from structures(classes, mask, seen, params.min_voxels)


def _told(
    model: Model, patch: tuple[int, ...], seen: Seen, bundle: Bundle, threshold: float
) -> Callable[[int], npt.NDArray[np.bool_]]:
    """Class number -> its mask on the grid of `seen`."""
    import torch

    tensor: Any = import_module("monai.data.meta_tensor").MetaTensor
    slid: Any = import_module("monai.inferers.utils").sliding_window_inference
    image = tensor(torch.from_numpy(seen.values)[None], affine=torch.from_numpy(seen.affine))
    with steady():
        try:
            ready = model.before({KEY: image})[KEY]
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise Dropped("NOT_ON_CARD", f"the bundle's preprocessing refuses this scan: {error!s:.200}") from error
        batch = ready.as_tensor()[None].float().to(model.device)
        if model.window is None:
            answer = _first(model.network(batch))
        else:
            answer = _first(slid(
                batch, patch, 1, lambda piece: _first(model.network(piece)), device="cpu",
                **{k: v for k, v in model.window.items() if k in ("overlap", "mode", "sigma_scale", "padding_mode")},
            ))
        scores = finite(answer[0]).cpu()
        scores = scores.sigmoid() if bundle.overlapping else scores.softmax(0)
        # the inverse needs the trace of what was done to the image
        told = tensor(scores, affine=ready.affine, applied_operations=ready.applied_operations)
        native = model.before.inverse({KEY: told})[KEY].as_tensor().numpy()
    if native.shape[1:] != seen.values.shape:
        raise ConfigError(
            f"{bundle.address}: its preprocessing cannot be undone: {native.shape[1:]} for {seen.values.shape}"
        )
    if bundle.overlapping:
        return lambda number: native[number] > threshold
    best = native.argmax(0)
    inside = native.sum(0) > 0.5  # what was cropped away comes back as zeros: it was not looked at
    return lambda number: (best == number) & inside


def _first(answer: Any) -> Any:
    """Deep supervision gives several answers, the full one first."""
    return answer[0] if isinstance(answer, (tuple, list)) else answer


@lru_cache(maxsize=2)
def _opened(bundle: Bundle, device: str) -> Model:
    be_quiet()
    plain = bundle.plain
    network_of = plain.call("network_def", "monai.networks.nets", NETWORKS)
    steps = [plain.checked(step, "monai.transforms", TRANSFORMS, "preprocessing") for _, step in bundle.preprocessing]
    name, window = plain.call("inferer", "monai.inferers", INFERERS)
    nets: Any = import_module("monai.networks.nets")
    transforms: Any = import_module("monai.transforms")
    try:
        network = getattr(nets, network_of[0])(**network_of[1])
        before = transforms.Compose([getattr(transforms, step)(**_on_image(args)) for step, args in steps
                                     if step != "Orientationd"])
    except (TypeError, ValueError, NotImplementedError, KeyError, AssertionError) as error:
        raise ConfigError(f"{bundle.address}: MONAI cannot make what it describes: {error!s:.300}") from error
    saved = tensors(bundle.weights)
    inner = (saved.get(key) for key in ("model", "state_dict", "network"))
    fill(network, next((one for one in inner if isinstance(one, dict)), saved), bundle.address)
    size = window.get("roi_size", (96, 96, 96))
    size = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in size):
        refuse(bundle.address, "roi_size", size)
    step = tuple(min(side, 32) for side in size)
    sliding = window if name == "SlidingWindowInferer" else None
    return Model(network.to(device), before, sliding, Patch(size, step if sliding is not None else size), device)


def _on_image(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a transform that sees the image alone, whatever else the bundle has it see."""
    source = {"source_key": KEY} if "source_key" in arguments else {}
    return {**{key: value[0] if isinstance(value, list) and len(value) == _keys(arguments) and key in ("mode", "dtype")
               else value for key, value in arguments.items()}, "keys": KEY, **source}


def _keys(arguments: Mapping[str, Any]) -> int:
    """How many things the bundle has a transform see."""
    keys = arguments.get("keys")
    return len(keys) if isinstance(keys, list) else 1


def _classes(bundle: Bundle, params: Params) -> dict[int, Named]:
    return scan_classes(bundle.address, bundle.labels, params)


def _read(address: str, path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{address}: no configs/{path.name} in it, so it is no bundle of MONAI") from None
    except (ValueError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{address}: configs/{path.name} cannot be read ({error!s:.200})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{address}: configs/{path.name} holds no object")
    return found
