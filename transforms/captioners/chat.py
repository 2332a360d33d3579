"""Captioner: a conversation about a picture, written by a language model from the picture's captions and mentions.

The invariant: turns alternate, each answer names the sentences it rests on, and none betrays that its writer read a
text: what holds a phrase of transforms/leak_phrases.yaml or of chat_phrases.yaml is mended by the model or refused, and
a refused conversation is a reject with the phrase in its message.

    - use: caption
      name: chat
      captioner: chat
      options: {base_url: "http://127.0.0.1:9014/v1", model: local}

The model sees no pixels (as for LLaVA-Med) but sentences of the source's own texts, those of the caption first, each
with a handle. A turn is a `question` and an `answer`. A question's evidence begins with the id of the answer before it,
which ties a conversation together, an answer's with the id of its question; then come the words it rests on, cut from
the texts (`text:ID@START:END`). A picture without such a text gets none.

Checked are form, phrases, numbers (an answer's stand in what it rests on) and that a turn shares a word with that;
whether the words mean what the sentences say is for the stage `verify`.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from infra.errors import ConfigError
from infra.keys import sha256
from infra.llm import Address, Client, Endpoint, Message, Policy, RequestCache
from infra.storage import resolve
from transforms.captioners.brief import ORDER, STRICT
from transforms.facts import Facts
from transforms.figures.sentences import sentences
from transforms.instructions.naming import Naming
from transforms.stage import Context, SampleRows

NAME = "chat"
REQUIRES = {"openai": "openai"}
VERSION = "1"
ATTEMPTS = 1
"""The client retries by itself."""
PROMPTS = Path(__file__).with_name("prompts")
PHRASES = (Path(__file__).parents[1] / "leak_phrases.yaml", Path(__file__).with_name("chat_phrases.yaml"))
SHORTEST = 20
"""Characters of the shortest sentence that is put to the model."""
_HANDLE = re.compile(r"\bsentence_\d+\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]{4,}")


class Params(BaseModel):
    """What a recipe may set. Fields that cannot change a conversation are left out of the stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="model id, as the server knows it")
    base_url: Address = Field(exclude=True, description="address of the API, usually ending in /v1")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", exclude=True, description="NAME of the environment variable that holds the key; null: none"
    )
    prompt: str | None = Field(
        None, exclude=True, description="the path of your own prompt (.md); its hash, not its name, enters the key"
    )
    kinds: tuple[str, ...] = Field(
        ("original_caption", "caption_context", "group_caption", "mention", "findings", "impression", "report"),
        description="kinds of the source's texts that are put to the model, in this order",
    )
    least_turns: int = Field(2, ge=1, description="a conversation has at least so many turns")
    most_turns: int = Field(4, ge=1, description="and at most so many")
    max_sentences: int = Field(24, ge=1, description="sentences put to the model, the first of the first kinds")
    max_tokens: int = Field(1024, ge=1, description="longest answer; a longer one is LLM_TRUNCATED")
    temperature: float | None = Field(0, ge=0, description="null: not sent, for models that refuse it")
    seed: int | None = Field(None, description="sent where set; few servers keep to it, the request cache does")
    price_in: float | None = Field(None, ge=0, description="USD per million prompt tokens; null: unknown")
    price_out: float | None = Field(None, ge=0, description="USD per million answer tokens; null: unknown")
    limit_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", exclude=True, description="what the server calls the limit on the answer"
    )
    timeout_s: float = Field(120, gt=0, exclude=True, description="longest wait for the server to say anything")
    deadline_s: float = Field(600, gt=0, exclude=True, description="no attempt is begun after this many seconds")
    attempts: int = Field(6, ge=1, exclude=True, description="attempts at a request that could not be served")

    @model_validator(mode="after")
    def _ordered(self) -> Params:
        if self.least_turns > self.most_turns:
            raise ValueError("least_turns is more than most_turns")
        return self


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the conversations: the prompt, and the phrases that none may hold."""
    return {"prompt": sha256(_template(params).encode()), **{p.name: sha256(p.read_bytes()) for p in PHRASES}}


def open_captioner(params: Params, context: Context) -> Captioner:
    """Connects lazily: nothing is sent before the first sample. Raises ConfigError for a missing key or prompt."""
    client = Client(Endpoint.of(params), RequestCache(context.cache / "llm"))
    return Captioner(params, _template(params), client, context.policies)


@dataclass(frozen=True)
class Sentence:
    """A sentence of a source's text, and where it stands: `text:ID@START:END`."""

    text: str
    kind: str
    cite: str


@dataclass(frozen=True)
class Captioner:
    """Callable on the facts and rows of a sample; close it, or let it be collected."""

    params: Params
    template: str
    client: Client
    policies: Mapping[str, str]
    """source -> policy; a source that is not listed is local"""

    @property
    def close(self) -> weakref.finalize[..., Client]:
        return self.client.close

    def __call__(self, facts: Facts, sample: SampleRows) -> list[Mapping[str, Any]]:
        """Rows of `texts` (without sample_id, text_id, licence): question, answer, question … What the request cost
        stands on the first row. Raises as `infra.llm.Client.ask` does."""
        told = told_sentences(facts, self.params)
        if not told:
            return []
        policy = cast(Policy, self.policies.get(str(sample.image["source"]), "local"))
        messages = [Message("system", self.template), Message("user", _asked(told, self.params))]
        answer = self.client.ask(messages, chat_form(told, self.params), policy)
        common = {
            "language": "en", "generator": f"{NAME}@{VERSION}", "model": answer.model, "roi_ids": [],
            "prompt_sha256": sha256(self.template.encode()), "request_sha256": answer.request_sha256,
        }
        rows = list(_rows(answer.data.model_dump()["turns"], told, Naming(facts.sample_id), common))
        rows[0] |= answer.bill
        return list(rows)


def told_sentences(facts: Facts, params: Params) -> dict[str, Sentence]:
    """Handle -> sentence; those that read like orders to a model are withheld, and so are scraps."""
    found: list[Sentence] = []
    for wanted in params.kinds:
        for text_id, kind, text in facts.originals:
            if kind == wanted:
                found += [
                    Sentence(" ".join(text[a:b].split()), kind, f"text:{text_id}@{a}:{b}") for a, b in sentences(text)
                ]
    kept = [s for s in found if len(s.text) >= SHORTEST and not ORDER.search(s.text)][: params.max_sentences]
    return {f"sentence_{n}": sentence for n, sentence in enumerate(kept, start=1)}


def chat_form(told: Mapping[str, Sentence], params: Params) -> type[BaseModel]:
    """The model of an answer: turns as many as wanted, each fit to keep."""
    handle = Literal[tuple(told)]  # type: ignore[valid-type]
    Words = Annotated[str, AfterValidator(_spoken)]
    cited = Annotated[list[handle], Field(min_length=1, max_length=len(told))]  # type: ignore[valid-type]

    def grounded(turn: Any) -> Any:
        rests = " ".join(told[name].text for name in turn.rests_on)
        if strange := sorted(set(_NUMBER.findall(turn.answer)) - set(_NUMBER.findall(rests))):
            raise ValueError(f"the answer holds {strange[0]}, which stands in no sentence it rests on")
        if not set(map(_stem, _WORD.findall(f"{turn.question} {turn.answer}"))) & set(map(_stem, _WORD.findall(rests))):
            raise ValueError(f"{turn.answer[:60]!r} has no word in common with what it rests on")
        return turn

    turn = create_model(
        "Turn", __config__=STRICT, question=(Words, ...), answer=(Words, ...), rests_on=(cited, ...)
    )
    checked = Annotated[turn, AfterValidator(grounded)]
    turns = Annotated[
        list[checked], Field(min_length=params.least_turns, max_length=params.most_turns), AfterValidator(_varied)
    ]
    return create_model("Chat", __config__=STRICT, turns=(turns, ...))


def _spoken(words: str) -> str:
    """What a speaker may say, spaces made single. The rules are not in the JSON schema: strict servers know none."""
    words = " ".join(words.split())
    if len(re.findall(r"\w+", words)) < 2:
        raise ValueError(f"{words!r} is not a sentence")
    if found := _leaks().search(words.replace("’", "'")):
        raise ValueError(f"says {found[0]!r}; speak as if you were looking at the image")
    if found := ORDER.search(words) or _HANDLE.search(words) or re.search("<image>", words):
        raise ValueError(f"contains {found[0]!r}, which is not about an image")
    return words


def _varied(turns: list[Any]) -> list[Any]:
    for said in ([t.question.casefold() for t in turns], [t.answer.casefold() for t in turns]):
        if len(set(said)) < len(said):
            raise ValueError("two turns say the same")
    if same := next((t.question for t in turns if t.question.casefold() == t.answer.casefold()), None):
        raise ValueError(f"{same!r} is answered with itself")
    return turns


def _stem(word: str) -> str:
    return word.casefold()[:5]


@cache
def _leaks() -> re.Pattern[str]:
    general: list[str] = yaml.safe_load(PHRASES[0].read_text(encoding="utf-8"))
    own: Mapping[str, Any] = yaml.safe_load(PHRASES[1].read_text(encoding="utf-8"))
    either = "|".join(re.escape(phrase) for phrase in (*general, *own["anywhere"]))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)


def _asked(told: Mapping[str, Sentence], params: Params) -> str:
    lines = [json.dumps({"id": h, "from": s.kind, "text": s.text}, ensure_ascii=False) for h, s in told.items()]
    safe = [line.replace("<", "\\u003c") for line in lines]
    wanted = f"Write {params.least_turns} to {params.most_turns} turns."
    return "\n".join(["<sentences>", *safe, "</sentences>", wanted, ""])


def _rows(
    turns: list[Mapping[str, Any]], told: Mapping[str, Sentence], naming: Naming, common: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    before: list[str] = []
    for turn in turns:
        cites = list(dict.fromkeys(told[handle].cite for handle in turn["rests_on"]))
        question = {**common, "kind": "question", "text": turn["question"], "evidence": before + cites}
        asked = f"text:{naming.name(question)}"
        answer = {**common, "kind": "answer", "text": turn["answer"], "evidence": [asked, *cites]}
        before = [f"text:{naming.name(answer)}"]
        yield from (question, answer)


def _template(params: Params) -> str:
    path = PROMPTS / "chat.md" if params.prompt is None else resolve(params.prompt)
    if not path.is_file():
        raise ConfigError(f"there is no prompt {params.prompt!r}; give the path of an .md file")
    return path.read_text(encoding="utf-8")
