"""Text in the pixels of DICOM files on their way into a dataset, and scans that could show a face."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicomfiles import data_of, hide, image
from PIL import Image, ImageDraw
from pydicom.uid import SecondaryCaptureImageStorage, UltrasoundImageStorage

from catalog.items import Item, Partition
from infra.errors import ConfigError
from transforms.decoded import IngestParams, Refused, Sample
from transforms.decoders import dicom
from transforms.deid import picture
from transforms.ingest import Ingest, SourceTerms

needs_ocr = pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="needs medloom[ocr]")
CLEAN, FLAG = IngestParams(burned_in="clean"), IngestParams(burned_in="flag")


def named() -> npt.NDArray[np.uint8]:
    """A picture with a name in its upper band."""
    drawn = Image.fromarray(np.full((480, 640), 40, np.uint8))
    ImageDraw.Draw(drawn).text((30, 8), "DOE JOHN 04.03.1962", fill=255, font_size=24)
    return np.asarray(drawn)


def made(params: IngestParams, *files: tuple[str, Any]) -> list[Any]:
    items = [Item(name, "dicom", "g", {"main": data_of(dataset)}) for name, dataset in files]
    return list(dicom.decode(items, params, hide))


def ultrasound(**elements: Any) -> Any:
    return image(0, named(), SOPClassUID=UltrasoundImageStorage, Modality="US", ImagePositionPatient=None,
                 ImageOrientationPatient=None, **elements)


@needs_ocr
def test_a_name_in_an_ultrasound_header_never_reaches_a_sample() -> None:
    (sample,) = made(CLEAN, ("us", ultrasound(BurnedInAnnotation="NO")))
    assert isinstance(sample, Sample) and len(np.unique(sample.pixels)) == 1
    assert [label.value for label in sample.labels if label.name == "burned-in annotation"] == ["filled"]


def test_public_collections_keep_their_pixels_and_say_so() -> None:
    (sample,) = made(FLAG, ("us", ultrasound()))
    assert isinstance(sample, Sample) and len(np.unique(sample.pixels)) > 2
    assert [label.value for label in sample.labels if label.name == "burned-in annotation"] == ["unknown"]


@needs_ocr
def test_a_screenshot_that_no_rule_knows_is_refused_and_its_neighbour_is_not() -> None:
    capture = image(1, named(), SOPClassUID=SecondaryCaptureImageStorage, Modality="OT", SeriesInstanceUID="1.2.9")
    found = made(CLEAN, ("sc", capture), ("ct", image(2)))
    assert [(one.item, one.error.code) for one in found if isinstance(one, Refused)] == [("sc", "TEXT_POSSIBLE")]
    assert [one.items for one in found if isinstance(one, Sample)] == [("ct",)]


@pytest.mark.parametrize(
    ("terms", "params", "asked"),
    [("private", {}, "clean"), ("public", {}, "flag"), ("public", {"burned_in": "clean"}, "clean"),
     ("private", {"burned_in": "flag"}, "flag")],
)
def test_private_sources_are_cleaned_unless_the_recipe_says_otherwise(
    terms: str, params: dict[str, Any], asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    seen = []

    class Source:
        VERSION = "1"

        @staticmethod
        def read(partition: Partition, params: Any) -> Any:
            yield Item("a", "dicom", "g", {"main": data_of(image())})

    def decode(items: Any, params: IngestParams, hide: Any) -> Any:
        seen.append(params.burned_in)
        return dicom.decode(items, params, hide)

    loaded = {"connector": Source, "decoder": type("Decoder", (), {"decode": staticmethod(decode)})}
    monkeypatch.setattr("transforms.ingest.load", lambda kind, name: loaded[kind])
    work = Ingest("s", "x", IngestParams(), IngestParams(**params), SourceTerms(identifiers=terms))  # type: ignore[arg-type]
    list(work.outcomes(Partition("s", "all", ({},), (("a", "0"),)), tmp_path))
    assert seen == [asked]


def test_without_a_reader_the_run_stops_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture.ocr, "REQUIRES", {"no_such_reader": "medloom[ocr]"})
    with pytest.raises(ConfigError, match=r"medloom\[ocr\].*burned_in: flag"):
        made(CLEAN, ("us", ultrasound()))
    assert isinstance(made(CLEAN, ("ct", image()))[0], Sample), "what needs no look needs no reader"


def test_slices_of_a_head_are_flagged_and_those_of_a_chest_are_not() -> None:
    def series(part: str) -> list[Any]:
        wide = np.random.default_rng(0).integers(0, 99, (256, 256), np.int16)
        slices = (image(n, wide, BodyPartExamined=part, PixelSpacing=[0.9, 0.9]) for n in range(40))
        return made(FLAG, *((str(n), one) for n, one in enumerate(slices)))

    for part, shows in (("HEAD", ["yes"]), ("CHEST", [])):
        samples = [one for one in series(part) if isinstance(one, Sample)]
        assert samples
        for sample in samples:
            assert [label.value for label in sample.labels if label.name == "could show a face"] == shows
