"""The template captioner and the caption stage: what is said, what it rests on, under which licence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.licences import strictest
from catalog.schema import LAYERS
from infra.errors import ConfigError
from transforms import caption
from transforms.captioners import template
from transforms.decoded import Region
from transforms.regions import roi_row
from transforms.stage import Context, fingerprint

CONTEXT = Context(Path("."))


def tables(rois=(), labels=(), passages=(), texts=(), **image) -> dict[str, pa.Table]:
    image = {
        "sample_id": "s", "image": {"bytes": b"", "path": "x.png"}, "width": 100, "height": 100, "source": "s",
        "source_item": "i", "group_id": "g", "sha256": "0", "pixel_sha256": "0", "licence_image": "CC-BY-4.0",
        "licence_annotation": "CC0-1.0", **image,
    }
    rows = {"images": [image], "rois": rois, "labels": labels, "measures": [], "passages": passages, "texts": texts}
    return {name: LAYERS[name].table(of) for name, of in rows.items()}


WHOLE = {"options": {"parts": False}}


def roi(label, y, x, role="organ", trust="boundary", origin="given", expert="source"):
    mask = np.zeros((100, 100), bool)
    mask[slice(*y), slice(*x)] = True
    return roi_row("s", Region(label, role, mask=mask), (100, 100), expert=expert, origin=origin, trust=trust)


def label(name, value="present"):
    return {"sample_id": "s", "label_id": f"id-{name}", "name": name, "value": value, "origin": "csv:x"}


def passage(text, licence="CC-BY-SA-4.0"):
    return {"sample_id": "s", "rank": 1, "passage_id": "p", "corpus": "c", "text": text, "query": "q", "score": 0.5,
            "licence": licence}


def captions(given: dict[str, pa.Table], **params) -> list[dict]:
    stage = caption.make_stage(caption.Params(**params), CONTEXT)
    outcome = stage(given, stage.open())
    assert list(outcome.kept) == ["s"] and not outcome.rejects
    return outcome.tables["texts"].to_pylist()


def said(given, kind="global", **params) -> list[str]:
    return [text["text"] for text in captions(given, **params) if text["kind"] == kind]


def test_nothing_is_said_that_is_not_known():
    assert captions(tables()) == []
    (text,) = captions(tables(modality="CT"), **WHOLE)
    assert (text["text"], text["evidence"], text["roi_ids"]) == ("This is a CT image.", ["image:modality"], [])
    assert (text["generator"], text["licence"], text["model"]) == ("template@2", "CC-BY-4.0", None)


def test_the_whole_image():
    given = tables(
        modality="CR", view="PA", anatomy="CHEST",
        labels=[label("effusion"), label("nodule"), label("mass", "absent"), label("edema", "uncertain"),
                label("sex", "F")],
    )
    assert said(given) == [
        "This is a PA radiograph of the chest. The source labels the image as effusion and nodule. The source states "
        "the absence of "
        "mass. The source is uncertain about edema. The source states that sex is F."
    ]
    assert captions(given)[0]["evidence"][:4] == ["image:view", "image:modality", "image:anatomy", "label:id-effusion"]
    assert said(tables(modality="MR", labels=[label("No Finding")])) == [
        "This is an MR image. The source labels the image as showing no finding."
    ]


def test_regions_speak_of_the_patients_sides_where_they_are_known():
    liver = roi("liver", (10, 40), (10, 40))
    assert said(tables([liver], orientation="LP"), "region") == [
        "The liver lies in the upper part of the image, toward the patient's right, and covers 9.0% of the image."
    ]
    plain = "The liver lies in the upper left of the image and covers 9.0% of the image."
    assert said(tables([liver]), "region") == [plain]
    kidney = roi("kidney_left", (60, 99), (60, 99))
    assert said(tables([kidney], orientation="LP"), "region")[0].startswith("The left kidney lies in the lower part")


def test_extent_is_told_of_believed_outlines_only():
    assert said(tables([roi("nodule", (10, 40), (10, 40), "lesion", "box")]), "region") == [
        "The nodule lies in the upper left of the image."
    ]


@pytest.mark.parametrize(
    ("orientation", "words"),
    [("LP", "The spleen lies to the patient's left of the liver."),
     ("RP", "The spleen lies to the patient's right of the liver."),
     ("PI", "The spleen lies posterior to the liver."), ("AF", "The spleen lies anterior to the liver."),
     (None, "The spleen lies to the right of the liver in the image.")],
)
def test_relations_are_turned_into_the_patient(orientation, words):
    rois = [roi("liver", (10, 60), (0, 40)), roi("spleen", (20, 50), (70, 99))]
    assert said(tables(rois, orientation=orientation), "relation") == [words]


def test_relations_down_the_image_and_within():
    rois = [roi("liver", (0, 40), (0, 40)), roi("bladder", (70, 90), (0, 40)), roi("cyst", (5, 9), (5, 9), "lesion")]
    assert said(tables(rois, orientation="LF"), "relation") == [
        "The bladder lies inferior to the liver.", "The cyst lies inside the liver.",
        "The cyst lies superior to the bladder.",
    ]
    twins = [roi("WBC", (0, 20), (0, 20), "cell"), roi("WBC", (0, 10), (80, 99), "cell")]
    assert said(tables(twins), "relation") == ["One region labelled WBC lies to the right of another in the image."]


def test_hundreds_are_one_text_and_a_body_is_none():
    cells = [
        roi("cell", (4 * n, 4 * n + 2), (8 * m, 8 * m + 2), "cell", origin="predicted", expert="cells@1")
        for n in range(20) for m in range(10)
    ]
    body = roi("imaged body", (0, 100), (0, 100), "body", "box", "predicted", "foreground@1")
    texts = captions(tables([body, *cells], modality="fluorescence microscopy"), **WHOLE)
    assert [t["kind"] for t in texts] == ["global", "region"]
    assert texts[0]["text"] == (
        "This is a fluorescence microscopy image. The algorithm cells found 200 regions labelled cell. The 200 "
        "regions labelled cell together cover 8.0% of the image."
    )
    assert texts[1]["text"] == "There are 200 regions labelled cell, together covering 8.0% of the image."
    assert len(texts[1]["roi_ids"]) == len(texts[1]["evidence"]) == 200
    assert texts[1]["licence"] == "CC-BY-4.0", "predicted regions have the image's licence"


def test_a_passage_is_knowledge_and_never_part_of_the_caption():
    given = tables(modality="CR", labels=[label("effusion")], passages=[passage("Effusion is fluid in the pleura.")])
    texts = captions(given, **WHOLE)
    assert [t["kind"] for t in texts] == ["global", "knowledge"]
    assert "pleura" not in texts[0]["text"]
    assert (texts[1]["evidence"], texts[1]["licence"]) == (["passage:p"], "CC-BY-SA-4.0")
    assert said(given, "knowledge", options={"knowledge": False}) == []


def test_ids_do_not_depend_on_words_and_are_unique():
    rois = [roi("liver", (10, 40), (10, 40)), roi("spleen", (60, 90), (60, 90))]
    first, second = captions(tables(rois), **WHOLE), captions(tables(rois, modality="CT"), **WHOLE)
    assert [t["text_id"] for t in first] == [t["text_id"] for t in second]
    assert len({t["text_id"] for t in first}) == len(first) == 4


def test_repeated_kinds_are_numbered(monkeypatch):
    row = {"kind": "question", "text": "?", "evidence": [], "roi_ids": [], "language": "en", "generator": "g"}
    monkeypatch.setattr(template, "open_captioner", lambda params, context: lambda facts, sample: [row, row])
    texts = captions(tables())
    assert len({t["text_id"] for t in texts}) == 2


def test_options_are_checked_and_enter_the_key():
    with pytest.raises(ConfigError, match="did you mean 'knowledge'"):
        caption.make_stage(caption.Params(options={"knowlege": False}), CONTEXT)
    with pytest.raises(ConfigError, match="did you mean 'template'"):
        caption.make_stage(caption.Params(captioner="templat"), CONTEXT)
    stages = [caption.make_stage(caption.Params(options=o), CONTEXT) for o in ({}, {"knowledge": False})]
    assert len({fingerprint(stage) for stage in stages}) == 2
    assert not stages[0].pixels


@pytest.mark.parametrize(
    ("codes", "binds"),
    [
        ([], None), (["CC-BY-4.0", None], None), (["CC0-1.0"], "CC0-1.0"), (["odd", "odd"], "odd"),
        (["odd", "CC0-1.0"], None), (["CC0-1.0", "MIT", "CC-BY-4.0"], "MIT"), (["CC-BY-3.0", "CC-BY-4.0"], "CC-BY-4.0"),
        (["CC-BY-NC-4.0", "CC-BY-4.0"], "CC-BY-NC-4.0"), (["CC-BY-SA-4.0", "CC-BY-NC-4.0"], None),
        (["CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"], "CC-BY-NC-SA-4.0"), (["CC-BY-3.0-IGO", "CC0-1.0"],
         "CC-BY-3.0-IGO"), (["CC-BY-NC-ND-4.0", "CC-BY-4.0"], "CC-BY-NC-ND-4.0"),
    ],
)
def test_the_strictest_licence(codes, binds):
    assert strictest(codes) == strictest(reversed(codes)) == binds
