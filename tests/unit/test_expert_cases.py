"""Faults of expert grounding that others met, and where each is tested.

    case                                                       tested in
    -----------------------------------------------------------------------------------------------------------------
    32  affine NaN, zero or singular; qform and sform differ   test_nifti_cases: test_case_32_…; test_meshnet:
                                                               test_what_is_no_volume_is_refused
    33  NaN voxels, odd datatypes, 4-D label, slope 0          test_nifti_cases: test_case_33_…; test_nifti:
                                                               test_values_that_are_no_…, test_a_slope_of_…
    34  file truncated or a bomb, wrong offset                 test_nifti: test_files_that_cannot_be_used_say_why,
                                                               test_a_bomb_is_not_inflated
    35  mask on another grid, undeclared labels, empty mask    test_nifti_cases: test_case_35_…; test_nifti:
                                                               test_labels_on_another_grid; here: empty answers
    36  expert out of memory, NaN, too slow, no GPU            test_model_folders: test_a_batch_that_does_not_fit_…,
                                                               test_numbers_that_overflow_…, test_a_gpu_that_…;
                                                               test_command_expert: test_a_program_that_hangs_…;
                                                               here: the sample stays, with roi_status
    37  weights not in the list, code in a pickle              test_wnet: test_code_in_a_checkpoint_is_not_run,
                                                               test_a_checkpoint_that_is_…;
                                                               test_model_folders: test_code_in_a_folder_is_not_run;
                                                               here
    8   box of a mask after resize, in every serialiser        test_nifti_cases: test_bug_8_…; test_regions:
                                                               test_shrinking_…; test_ground_volumes:
                                                               test_masks_lie_on_the_stored_picture_…; here: experts
    9   none, one or many instances                            test_nifti_cases: test_case_35_and_bug_9_…;
                                                               test_experts: test_ground_keeps_all_instances_…; here
    10  a mask presented as a picture (3 grey levels or less)  here: no expert takes it for a picture's contents
    16  wrong checkpoint                                       test_weights: test_a_changed_file_stops_the_build_…;
                                                               test_wnet: test_weights_that_are_another_…; test_routing:
                                                               test_wrong_weights_stop_the_build_also_under_auto; here
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_experts import CONTEXT, disc, grounded, nuclei, table_of

from catalog.masks import decode_mask
from catalog.schema import LAYERS
from infra import weights
from infra.errors import ConfigError, Dropped, Terminal
from transforms import ground
from transforms.decoded import Region
from transforms.experts import cells, chestxray, foreground
from transforms.regions import scaled


@pytest.mark.parametrize("error", [
    Terminal("OUT_OF_MEMORY", "the picture does not fit"), Terminal("NOT_FINITE", "the answer holds NaN"),
    Terminal("PROGRAM_TOO_SLOW", "it was ended after 60 s"),
    MemoryError(),
])
def test_case_36_an_expert_that_fails_costs_its_regions_and_its_neighbours_find_theirs(
    error: Terminal | MemoryError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(pixels: Any, image: Any, params: Any) -> list[Region]:
        raise error

    monkeypatch.setattr(foreground, "find", broken)
    monkeypatch.setattr(foreground, "applies", lambda image: None)
    rois, checks = grounded(table_of(a=(nuclei(), "fluorescence microscopy")), experts=("foreground", "cells"))
    assert len(rois) == 5
    status = next(check for check in checks if check["check"] == "roi_status")
    code = getattr(error, "code", "OUT_OF_MEMORY")
    assert code in status["detail"] and "cells: found 5" in status["detail"]
    assert not any(check["check"].startswith("agreement/") for check in checks), "a failure is no disagreement"


@pytest.mark.parametrize(("count", "words"), [(0, "found nothing"), (1, "found 1"), (5, "found 5")])
def test_bug_9_none_one_or_many_are_all_kept(count: int, words: str) -> None:
    image = np.random.default_rng(0).normal(12, 2, (128, 128))
    for y, x in ((25, 25), (25, 90), (80, 30), (80, 90), (110, 60))[:count]:
        image[disc(128, y, x, 10)] += 120
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    rois, (status, *_) = grounded(table_of(a=(pixels, "fluorescence microscopy")), experts=("cells",))
    assert (len(rois), status["value"], status["verdict"]) == (count, count, "pass") and words in status["detail"]


def test_case_35_and_bug_9_an_empty_mask_is_no_row_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(pixels: Any, image: Any, params: Any) -> list[Region]:
        return [Region("imaged body", "body", mask=np.zeros(pixels.shape[:2], bool))]

    monkeypatch.setattr(foreground, "find", nothing)
    rois, (status,) = grounded(table_of(a=(nuclei(), "CT")), experts=("foreground",))
    assert rois == [] and (status["verdict"], status["detail"]) == ("pass", "foreground: found nothing")


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_bug_8_what_is_found_in_a_resized_picture_is_what_was_found_resized(factor: float) -> None:
    from PIL import Image

    body = np.where(disc(200, 90, 110, 55), 150, 0).astype(np.uint8)
    side = round(200 * factor)
    other = np.asarray(Image.fromarray(body).resize((side, side), Image.Resampling.BOX))
    made, _ = grounded(table_of(a=(body, "CT"), b=(other, "CT")), experts=("foreground",))
    whole, small = made
    assert [abs(factor * w - s) <= 2 + factor for w, s in zip(whole["box"], small["box"], strict=True)] == [True] * 4
    moved = scaled(Region("b", "body", mask=decode_mask(whole["mask"])), factor).mask
    found = decode_mask(small["mask"])
    assert moved is not None and moved.shape == found.shape
    assert (moved & found).sum() / (moved | found).sum() > 0.93
    for row in made:
        rows, columns = np.nonzero(decode_mask(row["mask"]))
        assert row["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_bug_10_a_mask_is_not_taken_for_the_picture_it_belongs_to() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[60:200, 40:110] = mask[60:200, 146:216] = 255
    try:
        found = list(chestxray.find(mask, {"modality": "DX"}, chestxray.Params()))
    except Dropped:
        found = []
    assert found == [], "two white blocks on black are no radiograph of two lungs"
    assert list(foreground.find(mask, {"modality": "DX"}, foreground.Params())) == [], "plain white is no tissue"


def test_case_37_and_bug_16_weights_of_another_hash_stop_the_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path))
    for file in weights.named("lwnet-vessels").files:
        path = tmp_path / "lwnet-vessels" / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x80\x04" + b"x" * (file.bytes - 2))
    for experts in ("auto", ("wnet",)):
        with pytest.raises(ConfigError, match="lwnet-vessels"):
            ground.make_stage(ground.Params(experts=experts), CONTEXT)
    with pytest.raises(ConfigError, match="there are no weights"):
        weights.named("lwnet-vesels")


def test_a_lateral_view_of_unstated_view_is_refused_and_a_stated_frontal_one_is_looked_at() -> None:
    rows, columns = np.mgrid[:256, :256]
    body = ((columns - 128) / 110) ** 2 + ((rows - 128) / 120) ** 2 < 1
    plain = np.where(body, 150, 0).astype(float)
    for middle in (80, 176):
        plain[((columns - middle) / 36) ** 2 + ((rows - 125) / 70) ** 2 < 1] = 40
    grain = np.random.default_rng(0).normal(0, 4, plain.shape)
    frontal = np.clip(plain + grain, 0, 255).astype(np.uint8)
    assert len(list(chestxray.find(frontal, {"modality": "DX"}, chestxray.Params()))) == 2
    strict = chestxray.Params(between=1.0)
    with pytest.raises(Dropped, match=r"NOT_FRONTAL.*the view is not stated"):
        list(chestxray.find(frontal, {"modality": "DX"}, strict))
    assert len(list(chestxray.find(frontal, {"modality": "DX", "view": "PA"}, strict))) == 2


def test_lateral_and_frontal_radiographs_of_the_sample(sample_data: Path) -> None:
    from PIL import Image

    root = sample_data / "classification" / "covid_cxr_nc" / "images"
    lateral = np.asarray(Image.open(root / "PNEUMOCYSTIS" / "pneumocystis-pneumonia-2-L.png").convert("L"))
    with pytest.raises(Dropped, match="NOT_FRONTAL"):
        list(chestxray.find(lateral, {"modality": "CR", "anatomy": "chest"}, chestxray.Params()))
    for name in ("kjr-21-e24-g001-l-a", "kjr-21-e24-g002-l-a", "covid-19-pneumonia-19"):
        frontal = np.asarray(Image.open(root / "COVID-19" / "XRAY" / "PA" / f"{name}.jpg").convert("L"))
        assert len(list(chestxray.find(frontal, {"modality": "CR"}, chestxray.Params()))) == 2, name


def test_what_is_said_of_every_picture_is_never_nothing() -> None:
    images = table_of(
        a=(nuclei(), "fluorescence microscopy"), b=(255 - nuclei(), "fluorescence microscopy"),
        c=(np.zeros((32, 32), np.uint8), "CT"), d=(np.zeros((32, 32), np.uint8), None), e=(nuclei(), "XC"),
    )
    stage = ground.make_stage(ground.Params(experts="auto"), CONTEXT)
    empty = {layer: LAYERS[layer].table([]) for layer in ("rois", "labels", "checks")}
    made = stage({"images": images, **empty}, None).tables["checks"].to_pylist()
    for name in "abcde":
        said = {check["check"]: check["detail"] for check in made if check["sample_id"] == name}
        assert len(said["roi_status"]) > 5 and len(said["roi_routing"]) > 5
    assert cells.CARD.trust == "boundary"
