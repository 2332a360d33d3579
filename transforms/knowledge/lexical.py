"""The words of passages as a BM25 index: which passages share a query's words, and the rarer ones count more.

The invariant: the index is made from the passages' texts alone, byte for byte, and its files hold numbers and words,
never a pickle. Words are cased down, cut at everything that is no letter or digit, freed of stop words and of a plural
s, queries as passages; single letters and digits stay, since the B of hepatitis B counts.

BM25 as Lucene computes it (k1 1.5, b 0.75), by bm25s, which scores every word of every passage beforehand: a query
only adds up. Every score depends on all passages (how long they are, how rare a word is), so a new version computes
them all again: that costs about a hundredth of embedding them.

A stemmer earns nothing: nDCG@10 of fused search on MedQuAD's judgements (tests/benchmarks/retrieval.py) is 0.736 with
whole words, 0.739 without the plural s and 0.730 with Snowball's English stemmer; with question words stopped as well
it is 0.746, and with a title's words counted twice, as base.py has it, 0.757.

>>> words("Pleural effusions, left-sided (T2)")
['pleural', 'effusion', 'left', 'sided', 't2']
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from infra.keys import key
from infra.storage import write_atomic, write_bytes

REQUIRES = {"bm25s": "medloom[embed]"}
FORMAT = 1
K1, B = 1.5, 0.75
_STOP_WORDS = Path(__file__).with_name("stop_words.yaml")
_WORD = re.compile(r"[^\W_]+")
_ARRAYS = ("weights", "passages", "starts")

Scores = npt.NDArray[np.float32]


def fingerprint() -> str:
    """Key of all but the texts that decides an index: rules and libraries."""
    return key("lexical", FORMAT, K1, B, sorted(stop_words()), _WORD.pattern, version("bm25s"))


@cache
def stop_words() -> frozenset[str]:
    """The words of stop_words.yaml."""
    lists = yaml.safe_load(_STOP_WORDS.read_text(encoding="utf-8"))
    return frozenset(word for text in lists.values() for word in text.split())


def words(text: str) -> list[str]:
    """The words of a text that count, in order, repeated as they are."""
    plain, passed_over = unicodedata.normalize("NFKC", text).casefold(), stop_words()
    return [_singular(word) for word in _WORD.findall(plain) if word not in passed_over]


def _singular(word: str) -> str:
    """Without a plural s. It need not be right (diagnosi), only the same for queries and passages."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@dataclass(frozen=True)
class LexicalIndex:
    """Which passages hold which words, and what each is worth there."""

    terms: dict[str, int]
    weights: Scores
    """what a word is worth in a passage, word by word"""
    passages: npt.NDArray[np.int32]
    """the passage (row) of each weight"""
    starts: npt.NDArray[np.int32]
    """where each word's weights start, and one more: where the last word's end"""
    count: int
    """how many passages there are"""

    def scores(self, query: str) -> Scores:
        """BM25 of every passage, (passages,); 0 where it has no word of the query. A word asked twice counts once."""
        scores = np.zeros(self.count, np.float32)
        for term in sorted({self.terms[word] for word in words(query) if word in self.terms}):
            held = slice(self.starts[term], self.starts[term + 1])
            scores[self.passages[held]] += self.weights[held]  # a passage stands once in a word's list
        return scores


def build(texts: Sequence[str]) -> LexicalIndex:
    """The index of passages' texts, in their order."""
    from bm25s import BM25

    split = [words(text) for text in texts]
    terms = {word: number for number, word in enumerate(sorted({word for one in split for word in one}))}
    if not terms:  # nothing but punctuation: there is no word to find anything by
        empty = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int32)
        return LexicalIndex({}, *empty, count=len(texts))
    index = BM25(k1=K1, b=B, method="lucene", dtype="float32", int_dtype="int32")
    numbers = [[terms[word] for word in one] for one in split]
    index.index((numbers, terms), create_empty_token=False, show_progress=False)
    made = index.scores
    return LexicalIndex(
        terms, np.asarray(made["data"], np.float32), np.asarray(made["indices"], np.int32),
        np.asarray(made["indptr"], np.int32), len(texts),
    )


def save(index: LexicalIndex, folder: Path) -> None:
    """Write `lexical.*` into a folder, each file whole."""
    for name in _ARRAYS:
        write_atomic(folder / f"lexical.{name}.npy", partial(_save, getattr(index, name)))
    head = {"format": FORMAT, "passages": index.count, "terms": list(index.terms)}
    write_bytes(folder / "lexical.json", json.dumps(head, ensure_ascii=False).encode() + b"\n")


def load(folder: Path) -> LexicalIndex:
    """Read what `save` wrote; the arrays are mapped from disk, so that processes share them."""
    head = json.loads((folder / "lexical.json").read_text(encoding="utf-8"))
    weights, passages, starts = (
        np.load(folder / f"lexical.{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
    )
    return LexicalIndex(_numbered(head["terms"]), weights, passages, starts, head["passages"])


def _numbered(terms: Iterable[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(terms)}


def _save(array: npt.NDArray[Any], draft: Path) -> None:
    with open(draft, "wb") as file:  # given a name, numpy would add .npy to it
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
