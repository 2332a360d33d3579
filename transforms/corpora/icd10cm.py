"""ICD-10-CM, the US clinical modification of the classification of diseases, as passages.

One code is one passage: its description, what it is a kind of, and the terms it includes. The text is a work of the US
government (CDC/NCHS) and in the public domain there. It ships in the package simple-icd-10-cm.

    corpora: [{use: icd10cm, levels: category, chapters: [2, 10, 13]}]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from transforms.knowledge.passages import Passage
from transforms.terms.classification import classification

NAME = "icd10cm"
REQUIRES = {"simple_icd_10_cm": "medloom[demo]"}
LICENCE = "public-domain-US"

_CODE_RANGE = re.compile(r"\s*\([A-Z]\w+(-[A-Z]\w+)?\)$")


class Params(BaseModel):
    """Which codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: Literal["category", "subcategory", "all"] = Field(
        "category", description="category: the 3-character codes (1,900), subcategory: also those of 4 characters "
        "(12,000), all: every code (98,000)",
    )
    chapters: tuple[Annotated[int, Field(ge=1, le=22)], ...] | None = Field(
        None, description="chapters by number (2: neoplasms, 10: respiratory system …); null: all"
    )


def read(params: Params, base: Path | None = None) -> Iterator[Passage]:
    """Passages in the order of the classification, e.g. icd10cm:C34."""
    icd = classification()
    chapters = None if params.chapters is None else {str(number) for number in params.chapters}
    for code in dict.fromkeys(icd.get_all_codes()):  # a category that is a block of its own is listed twice
        if _wanted(icd, code, params.levels):
            parents = icd.get_ancestors(code)
            if chapters is None or parents[-1] in chapters:
                name = icd.get_description(code)
                yield Passage(f"{NAME}:{code}", _text(icd, code, parents), f"{code} {name}", NAME, LICENCE)


def _wanted(icd: Any, code: str, levels: str) -> bool:
    longest = {"category": len("C34"), "subcategory": len("C34.1"), "all": len(code)}
    return bool(icd.is_category(code) or icd.is_subcategory(code)) and len(code) <= longest[levels]


def _text(icd: Any, code: str, parents: list[str]) -> str:
    sentences = [icd.get_description(code)]
    kinds = [_CODE_RANGE.sub("", icd.get_description(parent)) for parent in parents if parent != code]
    sentences.append(f"A kind of: {'; '.join(kinds)}")
    if terms := [*icd.get_includes(code), *icd.get_inclusion_term(code)]:
        sentences.append(f"Includes: {'; '.join(terms)}")
    return ". ".join(sentences) + "."


def release(params: Params, base: Path | None = None) -> str:
    """The version of the package, which names no release of ICD-10-CM itself."""
    from importlib.metadata import version

    return f"simple-icd-10-cm {version('simple-icd-10-cm')}"
