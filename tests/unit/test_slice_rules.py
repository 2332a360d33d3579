"""Slices for every structure, and slices that show none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_volumes import LPS, labelled

from infra.errors import ConfigError
from transforms.decoded import IngestParams
from transforms.scans.volumes import Scan, Structure, check, choose_slices


def test_every_structure_gets_its_own_largest_slices() -> None:
    body = labelled(liver_5=9, liver_6=4, spleen_11=2, spleen_12=3, tumour_14=1)
    assert choose_slices(body, 2, "largest:1") == [14], "lesions decide"
    assert choose_slices(body, 2, "each:1") == [5, 12, 14]
    assert choose_slices(body, 2, "each:2") == [5, 6, 11, 12, 14]
    assert choose_slices(labelled(), 2, "each:3") == []


def test_masks_and_structures_count_like_labels() -> None:
    mask = np.zeros((6, 6, 20), bool)
    mask[0, :4, 7] = True
    outlined = Structure("spleen", "organ", np.ones((2, 2, 3), bool), (1, 1, 9))
    body = replace(labelled(liver_5=9), masks={"kidney": mask, "none": mask & False}, structures=(outlined,))
    assert choose_slices(body, 2, "each:1") == [5, 7, 9]
    assert choose_slices(body, 2, "largest:1") == [5]
    assert choose_slices(body, 0, "each:1") == [0, 1], "across another axis"
    assert choose_slices(body, 2, "negative:99") == [2, 3, 4, 6, 8, 12, 13, 14, 15, 16, 17]


def test_negative_slices_show_the_body_and_no_label() -> None:
    body = labelled(**{f"liver_{at}": 5 for at in range(6, 12)})
    assert choose_slices(body, 2, "negative:99") == [2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert choose_slices(body, 2, "negative:2") == [4, 15] and choose_slices(body, 2, "negative:1") == [13]
    assert choose_slices(body, 2, "each:1+negative:1") == [6, 13]
    full = labelled(**{f"liver_{at}": 5 for at in range(20)})
    assert choose_slices(full, 2, "negative:3") == []
    unlabelled = Scan(body.values, LPS, "MR", None)
    assert choose_slices(unlabelled, 2, "negative:3") == [], "nobody looked: it says nothing"
    empty = replace(body, labels=np.zeros_like(body.values))
    assert choose_slices(empty, 2, "negative:1") == [10], "somebody looked and found nothing"


@pytest.mark.parametrize("rule", ["each", "each:0", "negative", "negative:-1", "negative:x", "each:1.5", "every:1"])
def test_rules_that_do_not_exist(rule: str) -> None:
    with pytest.raises(ConfigError, match="no slice rule"):
        check(IngestParams(slices=rule))
