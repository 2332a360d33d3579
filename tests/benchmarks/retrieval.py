"""How well dense retrieval finds the answers that people judged good: recall@10 and nDCG@10 on MedQuAD's test set.

It needs two published files, neither of which is fetched for you:

    the judged answers   QA-TestSet-LiveQA-Med-Qrels-2479-Answers.zip of github.com/abachaa/MedQuAD
    the questions        TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml of
                         github.com/abachaa/LiveQA_MedicalTask_TREC2017

    python tests/benchmarks/retrieval.py JUDGED.zip QUESTIONS.xml [MODEL]

Every judged answer is searched for every question. Judgements: 1 incorrect, 2 related, 3 incomplete, 4 excellent.
Recall counts 3 and 4 (of ten where there are more), nDCG has the gains 0 to 3; an answer not judged for a question
counts as 0.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lxml import etree

from transforms.knowledge.base import build
from transforms.knowledge.embedding import DEFAULT_MODEL

TOP = 10
CHUNKS = 200
"""Chunks fetched for a question, enough to hold the ten best answers."""


def judged(archive: Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Answers by id, and question number -> answer id -> judgement."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if not name.startswith("__MACOSX")]
        answers = files.read(next(name for name in names if name.endswith(".csv"))).decode()
        lines = files.read(next(name for name in names if name.endswith(".txt"))).decode().splitlines()
    judgements: dict[str, dict[str, int]] = {}
    for question, judgement, answer in map(str.split, filter(None, lines)):
        judgements.setdefault(question, {})[answer] = int(judgement[0])
    return {row["AnswerID"]: row["Answer"] for row in csv.DictReader(io.StringIO(answers))}, judgements


def questions(file: Path) -> dict[str, str]:
    """Question number -> its one-sentence summary."""
    root = etree.parse(str(file), etree.XMLParser(resolve_entities=False, no_network=True)).getroot()
    found = {q.get("qid"): q.findtext("NLM-Summary") for q in root.iter("NLM-QUESTION")}
    return {number.removeprefix("TQ"): " ".join(text.split()) for number, text in found.items()}


def ndcg(ranked: Sequence[str], judgements: Mapping[str, int]) -> float:
    """Discounted gain of the first ten over the best possible."""
    gains = [judgements.get(answer, 1) - 1 for answer in ranked[:TOP]]
    best = sorted((judgement - 1 for judgement in judgements.values()), reverse=True)[:TOP]
    return _discounted(gains) / _discounted(best)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def main(archive: Path, file: Path, model: str = DEFAULT_MODEL) -> None:
    answers, judgements = judged(archive)
    asked = {number: text for number, text in questions(file).items() if number in judgements}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "answers.jsonl")
        texts.write_text("\n".join(json.dumps({"id": id, "text": text}) for id, text in answers.items()))
        start = time.perf_counter()
        base = build([("textfiles", {"path": str(texts)})], Path(folder), "medquad", model)
        print(f"{len(answers)} answers, {len(base.passages)} chunks, embedded in {time.perf_counter() - start:.0f} s")
        found = base.search(list(asked.values()), CHUNKS)
    recalls, gains = [], []
    for number, hits in zip(asked, found, strict=True):
        ranked = list(dict.fromkeys(hit.passage.id.removeprefix("textfiles:").partition("#")[0] for hit in hits))
        good = {answer for answer, judgement in judgements[number].items() if judgement >= 3}
        if good:
            recalls.append(len(good & set(ranked[:TOP])) / min(len(good), TOP))
        if max(judgements[number].values()) > 1:
            gains.append(ndcg(ranked, judgements[number]))
    print(f"{len(asked)} questions of {len(judgements)} judged")
    print(f"recall@{TOP}  {sum(recalls) / len(recalls):.3f}  ({len(recalls)} questions with a good answer)")
    print(f"nDCG@{TOP}    {sum(gains) / len(gains):.3f}  ({len(gains)} questions with a related answer)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
