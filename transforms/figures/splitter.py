"""Captions that the grammar cannot divide, divided by a language model: its words count where they are the caption's.

The invariant: a quote is kept as the span where it stands in the caption, once and exactly; an answer with any other
quote is sent back, and refused in the end. Nothing approximate is accepted.

    - use: panels
      llm: {base_url: "http://127.0.0.1:9014/v1", model: local}
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from infra.errors import Terminal
from infra.keys import sha256
from infra.llm import Address, Answer, Client, Endpoint, Message, Policy, RequestCache
from transforms.captioners.brief import ORDER
from transforms.figures.sentences import Span, sentences
from transforms.figures.subcaptions import Part, Split, unsplit
from transforms.stage import Context

PROMPT = Path(__file__).with_name("prompts") / "split.md"
SURE = 0.6
"""Confidence of a model's split: its words are the caption's, that they are the right ones is not proved."""


STRICT = ConfigDict(extra="forbid")


class LanguageModel(BaseModel):
    """A model behind an OpenAI-compatible address. Fields that cannot change an answer enter no key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="model id, as the server knows it")
    base_url: Address = Field(exclude=True, description="address of the API, usually ending in /v1")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", exclude=True, description="NAME of the environment variable that holds the key; null: none"
    )
    max_tokens: int = Field(2048, ge=1, description="longest answer; a longer one is LLM_TRUNCATED")
    temperature: float | None = Field(0, ge=0, description="null: not sent, for models that refuse it")
    seed: int | None = Field(None, description="sent where set")
    price_in: float | None = Field(None, ge=0, description="USD per million prompt tokens; null: unknown")
    price_out: float | None = Field(None, ge=0, description="USD per million answer tokens; null: unknown")
    limit_name: Literal["max_tokens", "max_completion_tokens"] = Field("max_tokens", exclude=True)
    timeout_s: float = Field(120, gt=0, exclude=True, description="longest wait for the server to say anything")
    deadline_s: float = Field(600, gt=0, exclude=True, description="no attempt is begun after this many seconds")
    attempts: int = Field(6, ge=1, exclude=True, description="attempts at a request that could not be served")


@dataclass(frozen=True)
class Told:
    """A model's split, and the columns of `texts` that say where it comes from; the bill stands apart."""

    split: Split
    source: Mapping[str, Any]
    bill: Mapping[str, Any]


def prompt_sha256() -> str:
    """Hash of the prompt."""
    return sha256(PROMPT.read_bytes())


def open_splitter(params: LanguageModel, context: Context) -> Splitter:
    """Connects lazily: nothing is sent before the first caption. Raises ConfigError for a missing key."""
    return Splitter(Client(Endpoint.of(params), RequestCache(context.cache / "llm")), context.policies)


@dataclass(frozen=True)
class Splitter:
    """Callable on a caption and its source; close it, or let it be collected."""

    client: Client
    policies: Mapping[str, str]
    """source -> policy; a source that is not listed is local"""

    @property
    def close(self) -> weakref.finalize[..., Client]:
        return self.client.close

    def __call__(self, caption: str, source: str) -> Told:
        """The split as the model sees it; without parts where it sees none.

        Raises as `infra.llm.Client.ask` does, and Terminal CAPTION_NOT_SENT for a caption that reads like an order.
        """
        if found := ORDER.search(caption):
            raise Terminal("CAPTION_NOT_SENT", f"the caption has {found[0]!r}, which reads like an order to a model")
        words = json.dumps(caption, ensure_ascii=False).replace("<", "\\u003c")
        asked = [
            Message("system", PROMPT.read_text(encoding="utf-8")), Message("user", f"<caption>\n{words}\n</caption>\n"),
        ]
        policy = cast(Policy, self.policies.get(source, "local"))
        answer: Answer[Any] = self.client.ask(asked, answer_form(caption), policy)
        told = {"model": answer.model, "prompt_sha256": prompt_sha256(), "request_sha256": answer.request_sha256}
        return Told(_split(caption, answer.data), told, answer.bill)


class Quoted(BaseModel):
    """A panel in the answer of a model."""

    model_config = STRICT

    label: str
    quote: str


def answer_form(caption: str) -> type[BaseModel]:
    """The model of an answer about this caption: labels and quotes that stand in it, quotes once."""

    def check(self: Any) -> Any:
        names = [panel.label.casefold() for panel in self.panels]
        if len(set(names)) < len(names):
            raise ValueError("names a panel twice")
        spans = sorted({_place(caption, panel.label, panel.quote) for panel in self.panels})
        if any(a[1] > b[0] for a, b in pairwise(spans)):
            raise ValueError("has quotes that overlap; quote for each panel its own words only")
        return self

    validators: dict[str, Any] = {"check": model_validator(mode="after")(check)}
    return create_model("Panels", __config__=STRICT, __validators__=validators, panels=(list[Quoted], ...))


def _place(caption: str, label: str, quote: str) -> Span:
    """Where the quote stands. Raises ValueError, with words for the model, where it does not, or more than once."""
    if not label.strip() or not re.search(rf"(?<!\w){re.escape(label.strip())}(?!\w)", caption, re.IGNORECASE):
        raise ValueError(f"the label {label!r} does not stand in the caption")
    if not re.search(r"\w", quote):
        raise ValueError(f"the quote for {label!r} has no words")
    if caption.count(quote) != 1:
        fault = "stands in it several times" if quote in caption else "does not stand in the caption; copy it exactly"
        raise ValueError(f"the quote {quote[:60]!r} {fault}")
    start = caption.index(quote)
    inner = quote.strip()
    start += quote.index(inner)
    return start, start + len(inner)


def _split(caption: str, answer: Any) -> Split:
    together: dict[Span, list[str]] = {}
    for panel in answer.panels:
        together.setdefault(_place(caption, panel.label, panel.quote), []).append(panel.label.strip())
    if not together:
        return unsplit(caption)
    common = [s for s in sentences(caption) if not any(a < s[1] and s[0] < b for a, b in together)]
    parts = tuple(Part(tuple(labels), (span,)) for span, labels in sorted(together.items()))
    return Split(parts, tuple(common), SURE, "llm")
