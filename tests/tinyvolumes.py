"""Tiny model folders for whole scans whose weights are set by hand, so that their answer is known.

`nnunet` and `bundle` hold the same three rules of a CT: what is brighter than 200 HU is bone; where the values fall
towards the patient's left lies a left rim, where they fall towards the right a right rim (RAS axes: x grows to R).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from transforms.scans.volumes import Scan

LEFT, RIGHT, BONE = "left rim", "right rim", "bone"
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2, 0, 40], [0, 0, 3, -20], [0, 0, 0, 1]])
"""LPS, 2 x 2 x 3 mm"""


def phantom(affine: np.ndarray = AFFINE, **facts: Any) -> Scan:
    """A block of water with a rod of bone nearer to the patient's left, in air. x grows to the patient's left."""
    values = np.full((24, 20, 16), -1000, np.int16)
    values[4:20, 4:16, 2:14] = 0
    values[15:17, 8:11, 2:14] = 700
    return Scan(values, affine, **{"modality": "CT", "anatomy": "abdomen", **facts})


def rules() -> tuple[np.ndarray, np.ndarray]:
    """Weights (3 features, 3 x 3 x 3 as x, y, z) of (HU + 1000) / 1000: fall to the left, to the right, brightness.

    Along RAS x, which grows to the patient's right: at the left rim of a thing values grow with x.
    """
    weights, bias = np.zeros((3, 3, 3, 3), np.float32), np.zeros(3, np.float32)
    weights[0, 2, 1, 1], weights[0, 0, 1, 1] = 1, -1
    weights[1, 2, 1, 1], weights[1, 0, 1, 1] = -1, 1
    weights[2, 1, 1, 1] = 1
    return weights, bias


LOGITS = np.array([[0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 20]], np.float32)
"""class (background, left rim, right rim, bone) x feature"""
OFFSETS = np.array([0, -5.8, -5.8, -24], np.float32)
"""a rim is a step of 725 HU and more over two voxels; bone is more than 200 HU"""


@pytest.fixture(scope="session")
def nnunet_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of nnU-Net v2 as its trainer saves it, two stages of one convolution."""
    import torch

    pytest.importorskip("nnunetv2")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    root = tmp_path_factory.mktemp("nnunet")
    needed = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [3, 3], "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]], "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1], "conv_bias": True, "norm_op": None, "norm_op_kwargs": {},
            "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"negative_slope": 1.0},
        },
        "_kw_requires_import": needed,
    }
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset001_Tiny", "plans_name": "nnUNetPlans", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {"0": {
            "mean": -1000.0, "std": 1000.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}},
        "configurations": {"3d_fullres": {
            "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
            "patch_size": [16, 16, 16], "spacing": [3.0, 2.0, 2.0], "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False], "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling, "batch_dice": False, "architecture": network}},
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "left_rim": 1, "right_rim": 2, "bone": 3},
               "numTraining": 1, "file_ending": ".nii.gz"}
    model = get_network_from_plans(network["network_class_name"], network["arch_kwargs"], needed, 1, 4,
                                   allow_init=False, deep_supervision=False)
    weights, bias = rules()
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        first = model.encoder.stages[0][0].convs[0].conv
        first.weight[:, 0] = torch.from_numpy(np.ascontiguousarray(weights.transpose(0, 3, 2, 1)))
        first.bias.copy_(torch.from_numpy(bias))
        last = model.decoder.stages[0].convs[0].conv
        for feature in range(3):
            last.weight[feature, 3 + feature, 1, 1, 1] = 1
        model.decoder.seg_layers[-1].weight[:, :, 0, 0, 0] = torch.from_numpy(LOGITS)
        model.decoder.seg_layers[-1].bias.copy_(torch.from_numpy(OFFSETS))
    (root / "fold_0").mkdir()
    (root / "dataset.json").write_text(json.dumps(dataset))
    (root / "plans.json").write_text(json.dumps(plans))
    torch.save({
        "network_weights": model.state_dict(), "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "fold": 0}, "inference_allowed_mirroring_axes": (0, 1),
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)]}, "current_epoch": 1,
    }, root / "fold_0" / "checkpoint_final.pth")
    return str(root)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of MONAI as its zoo lays it out: a linear UNet, a sliding window, spacing of 2 mm."""
    import torch

    pytest.importorskip("monai")
    from monai.networks.nets import UNet

    root = tmp_path_factory.mktemp("bundle")
    network = {"spatial_dims": 3, "in_channels": 1, "out_channels": 4, "channels": [3, 3], "strides": [1],
               "kernel_size": 3, "up_kernel_size": 3, "num_res_units": 0, "norm": None, "act": None}
    config = {
        "imports": ["$import glob"], "bundle_root": ".", "device": "$torch.device('cpu')", "size": [16, 16, 16],
        "datalist": "$list(sorted(glob.glob(@bundle_root + '/*.nii.gz')))",
        "network_def": {"_target_": "UNet", **network}, "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 3.0], "mode": "bilinear"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1000, "a_max": 1000, "b_min": 0, "b_max": 2,
             "clip": True},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
        ]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@size", "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ]},
        "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "network": "@network"},
    }
    channels = {"0": "background", "1": LEFT, "2": RIGHT, "3": BONE}
    metadata = {"version": "0.0.1", "monai_version": "1.6.1", "network_data_format": {
        "inputs": {"image": {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1}},
        "outputs": {"pred": {"type": "image", "format": "segmentation", "num_channels": 4, "channel_def": channels}}}}
    model = UNet(**network)
    weights, bias = rules()
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        first, last = model.model[0].conv, model.model[2].conv
        first.weight[:, 0] = torch.from_numpy(weights)
        first.bias.copy_(torch.from_numpy(bias))
        last.weight[:3, :, 1, 1, 1] = torch.from_numpy(LOGITS.T.copy())
        last.bias.copy_(torch.from_numpy(OFFSETS))
    (root / "configs").mkdir()
    (root / "models").mkdir()
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.save(model.state_dict(), root / "models" / "model.pt")
    return str(root)
