"""Captions by a language model behind an OpenAI-compatible address, on this machine or elsewhere.

The invariant: every text names the evidence it may rest on, the model as the server called it, and the request it came
from; every region and pair gets exactly one text. The stored image stays clean: regions are drawn on a copy.

    - use: caption
      captioner: llm
      options: {base_url: "http://127.0.0.1:9014/v1", model: local}

Kinds: `global`, `part/…` (MedTrinity's five parts, each only where facts speak of it; of the part region, place, extent
and look are asked for as fields of their own), `region`, `relation`, `lay`, and `global` in further languages. One
request asks for all of them; regions and pairs beyond `per_call` get further requests. Then each text is graded by
rules (transforms/claims), and what fails is sent back with the reasons, at most `repair` times; a new text takes the
place of an old one only if its grade is better. What still fails is kept: the stage `verify` marks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import ConfigError
from infra.keys import sha256
from infra.llm import Address, Answer, Client, Endpoint, Message, Policy, RequestCache
from infra.outbound import Outbound
from infra.storage import resolve
from transforms.captioners.brief import PIXELS, Brief, answer_form, brief_of
from transforms.captioners.looking import Shown, pictures
from transforms.facts import Facts, RegionFact, RelationFact, evidence
from transforms.stage import Context, SampleRows

if TYPE_CHECKING:
    from infra.llmtalk import Asker
    from transforms.claims.grade import Grade

NAME = "llm"
REQUIRES = {"openai": "openai"}
VERSION = "2"
WANTS_PIXELS = attrgetter("sees_images")
AHEAD = 2
"""Samples prepared for each request in flight, so that no request waits for its words."""
ATTEMPTS = 1
"""The client retries by itself; retrying a whole sample on top would multiply its patience."""
PROMPTS = Path(__file__).with_name("prompts")

Grader = Callable[[Mapping[str, Any], Facts, SampleRows], "Grade"]


class Params(BaseModel):
    """What a recipe may set. Fields that cannot change a caption are left out of the stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="model id, as the server knows it")
    base_url: Address | None = Field(None, exclude=True, description="address of the API, usually ending in /v1")
    base_urls: tuple[Address, ...] = Field(
        (), exclude=True, description="instead of base_url: addresses that serve the same model, asked side by side"
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", exclude=True, description="NAME of the environment variable that holds the key; null: none"
    )
    sees_images: bool = Field(False, description="send the image too, as `picture` says")
    picture: Shown = Field(
        "drawn", description="drawn: the regions outlined and numbered on a copy; cropped: the image as it is, then "
        "each region asked for cut out; both: drawn, then cut out; clean: the image as it is"
    )
    max_side: int = Field(1024, ge=64, description="longer side of the image sent, pixels; larger ones are shrunk")
    prompt: str = Field(
        "default", exclude=True, description="a file of transforms/captioners/prompts, or the path of your own .md; "
        "its hash, not its name, enters the key",
    )
    language: str = Field("en", description="ISO 639-1 code of the language that the prompt asks for")
    parts: bool = Field(True, description="ask for the five parts of the caption as texts of their own too")
    lay: bool = Field(False, description="ask for the caption in a patient's words too")
    languages: tuple[str, ...] = Field((), description="ask for the caption in these languages too, ISO 639-1")
    max_regions: int | None = Field(None, ge=0, description="so many regions get a sentence, the largest; null: all")
    max_relations: int | None = Field(None, ge=0, description="so many pairs get a sentence, the largest; null: all")
    per_call: int = Field(16, ge=1, description="regions and pairs asked for in a request; more take further requests")
    repair: int = Field(2, ge=0, le=5, description="rounds in which texts that fail their grade are written again")
    quote_chars: int = Field(800, ge=1, description="longest quote of a passage or source text; longer ones end in …")
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
    concurrency: int = Field(4, ge=1, exclude=True, description="requests in flight from one worker")
    requests_per_minute: float | None = Field(
        None, gt=0, exclude=True, description="limit that all workers of a machine keep together; null: none"
    )
    tokens_per_minute: float | None = Field(None, gt=0, exclude=True, description="likewise, of tokens")
    outbound: Outbound = Field(
        "plain", exclude=True, description="what is looked for in texts that leave this machine: plain, strict or off"
    )
    batch: bool = Field(
        False, exclude=True, description="collect requests for the Batch API (`medloom batch`) instead of asking now"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Params:
        if (self.base_url is None) == (not self.base_urls):
            raise ValueError("give either base_url or base_urls")
        return self


def CONCURRENCY(params: Params) -> int:
    """How many samples are under way at a time."""
    return AHEAD * params.concurrency if params.concurrency > 1 else 1


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the captions: the prompts, and the rules that say which text is written again."""
    prompts = {"prompt": sha256(_prompt(params).encode())}
    if not params.repair:
        return prompts
    from transforms.claims import grade

    graded = {"grade": grade.VERSION, "repair_prompt": sha256(_repair_prompt(params).encode())}
    return prompts | graded


def endpoints(params: Params) -> list[Endpoint]:
    """The endpoints it asks: `medloom batch` submits and collects what waits for them."""
    urls = params.base_urls or (params.base_url,)
    return [Endpoint.of(params, base_url=url) for url in urls if url is not None]


def open_captioner(params: Params, context: Context) -> Captioner:
    """Connects lazily: nothing is sent before the first sample. Raises ConfigError for a missing key or prompt."""
    cache = RequestCache(context.cache / "llm")
    asker: Asker
    if len(asked := endpoints(params)) == 1:
        asker = Client(asked[0], cache)
    else:
        from infra.llmpool import Pool

        asker = Pool(asked, cache)
    return Captioner(params, _prompt(params), asker, context.policies)


@dataclass(frozen=True)
class Captioner:
    """Callable on the facts and rows of a sample; close it, or let it be collected."""

    params: Params
    template: str
    asker: Asker
    policies: Mapping[str, str]
    """source -> policy; a source that is not listed is local"""
    grade: Grader | None = None
    """what grades a text; None: transforms.claims.grade"""

    @property
    def close(self) -> Callable[[], object]:
        closing: Callable[[], object] = self.asker.close  # type: ignore[attr-defined]
        return closing

    def __call__(self, facts: Facts, sample: SampleRows) -> list[Mapping[str, Any]]:
        """Rows of `texts` (without sample_id, text_id, licence): global, parts, regions, relations, lay, languages.

        An image that nothing is known about gets none from a model that cannot see it. What a request cost stands on
        the first row it yielded, what a repair cost on the first row it was to mend. Needs the sample's pixels where
        `sees_images`. Raises as `infra.llm.Client.ask` does; a repair that fails leaves the texts as they were.
        """
        params = self.params
        brief = brief_of(
            facts, params.max_regions, params.max_relations, params.quote_chars, parts=params.parts,
            sees=params.sees_images, lay=params.lay, languages=params.languages,
        )
        if not brief.cites and not params.sees_images:
            return []
        rows = [row for part in brief.chunks(params.per_call) for row in self._asked(part, facts, sample)]
        if params.repair and params.language == "en":
            from transforms.captioners.repair import repaired

            prompt = _repair_prompt(params)
            return list(repaired(rows, brief, facts, sample, self, prompt))
        return list(rows)

    def ask(self, brief: Brief, sample: SampleRows, prompt: str, text: str, form: type[BaseModel]) -> Answer[Any]:
        """What the model answers to a text about a sample, with the pictures that the recipe asks for."""
        policy = cast(Policy, self.policies.get(sample.image["source"], "local"))
        language = None if self.params.languages else self.params.language  # an answer in several is in none
        system = Message("system", prompt)
        if not self.params.sees_images:
            return self.asker.ask([system, Message("user", text)], form, policy, language=language)
        note, shown = pictures(sample, brief, self.params.picture, self.params.max_side)
        asked = [system, Message("user", text + note, shown)]
        return self.asker.ask(asked, form, policy, language=language)

    def _asked(self, brief: Brief, facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        answer = self.ask(brief, sample, self.template, brief.request, answer_form(brief))
        common = {
            "language": self.params.language, "generator": f"{NAME}@{VERSION}", "model": answer.model,
            "prompt_sha256": sha256(self.template.encode()), "request_sha256": answer.request_sha256,
        }
        seen = [PIXELS] if self.params.sees_images else []
        rows = [
            {**common, **row, "evidence": [*dict.fromkeys([*row["evidence"], *seen])]}
            for row in _texts(answer.data, brief, facts)
        ]
        billed(rows[0], answer)
        return rows


def _texts(data: BaseModel, brief: Brief, facts: Facts) -> Iterator[dict[str, Any]]:
    said = data.model_dump()
    cited = evidence(facts, [brief.cites[handle] for handle in said.get("global_evidence", [])])
    if brief.whole:
        yield {"kind": "global", "roi_ids": [], "text": said["global_text"], "evidence": cited}
    for part in brief.parts:
        text = said["parts"][part.name]
        text = text if isinstance(text, str) else " ".join(text[field] for field in brief.fields)
        rests = list(part.evidence)
        yield {"kind": f"part/{part.name}", "roi_ids": list(part.roi_ids), "text": text, "evidence": rests}
    pairs = {(pair.a, pair.b): pair for pair in facts.relations}
    for handle, roi in brief.regions.items():
        rests = [f"roi:{roi}", *_measures(facts.region(roi))]
        yield {"kind": "region", "roi_ids": [roi], "text": said["regions"][handle], "evidence": rests}
    for handle, pair in brief.relations.items():
        rests = [*(f"roi:{roi}" for roi in pair), *_measures(pairs[pair])]
        yield {"kind": "relation", "roi_ids": list(pair), "text": said["relations"][handle], "evidence": rests}
    if brief.lay:
        yield {"kind": "lay", "roi_ids": [], "text": said["lay_text"], "evidence": cited}
    for language in brief.languages:
        text = said["translations"][language]["text"]
        yield {"kind": "global", "roi_ids": [], "text": text, "evidence": cited, "language": language}


def _measures(of: RegionFact | RelationFact) -> list[str]:
    """What was said to the model of a region's or pair's measures."""
    return [f"measure:{fact.id}" for fact in of.measures.values() if fact.words]


def billed(row: dict[str, Any], answer: Answer[Any]) -> None:
    """Add what an answer cost to a row; what nobody knows stays unknown."""
    for name, cost in answer.bill.items():
        before = row.get(name, 0)
        row[name] = None if cost is None or before is None else before + cost


def _prompt(params: Params) -> str:
    """The prompt with the sections that the recipe asks for."""
    sections = {"parts": params.parts, "lay": params.lay, "languages": bool(params.languages)}
    return _template(params) + "".join(_read(name) for name, wanted in sections.items() if wanted)


def _repair_prompt(params: Params) -> str:
    return _template(params) + _read("repair")


def _read(name: str) -> str:
    return (PROMPTS / f"{name}.md").read_text(encoding="utf-8")


def _template(params: Params) -> str:
    if params.prompt.endswith(".md"):
        return resolve(params.prompt).read_text(encoding="utf-8")
    path = PROMPTS / f"{params.prompt}.md"
    if path.parent != PROMPTS or not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.md")))
        raise ConfigError(f"there is no prompt {params.prompt!r}; known: {known}, or give the path of an .md file")
    return path.read_text(encoding="utf-8")
