"""Captions by a language model behind an OpenAI-compatible address, on this machine or elsewhere.

The invariant: every text names the evidence it may rest on, the model as the server called it, and the request it came
from; regions and relations get exactly one text each. The stored image stays clean: regions are drawn on a copy.

    - use: caption
      captioner: llm
      options: {base_url: "http://127.0.0.1:9014/v1", model: local}
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from catalog.drawing import draw_regions
from infra.errors import ConfigError
from infra.keys import sha256
from infra.llm import Address, Answer, Client, Endpoint, Message, Picture, Policy, RequestCache
from infra.storage import resolve
from transforms.captioners.brief import Brief, answer_form, brief_of
from transforms.facts import Facts, evidence
from transforms.stage import Context, SampleRows

NAME = "llm"
REQUIRES = {"openai": "openai"}
VERSION = "1"
WANTS_PIXELS = attrgetter("sees_images")
ATTEMPTS = 1
"""The client retries by itself; retrying a whole sample on top would multiply its patience."""
LEGIBLE = 512
"""Pixels of the longer side up to which a small image is enlarged, so that the numbers drawn on it can be read."""
PROMPTS = Path(__file__).with_name("prompts")


class Params(BaseModel):
    """What a recipe may set. Fields that cannot change a caption are left out of the stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="model id, as the server knows it")
    base_url: Address = Field(exclude=True, description="address of the API, usually ending in /v1")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", exclude=True, description="NAME of the environment variable that holds the key; null: none"
    )
    sees_images: bool = Field(False, description="send the image too, with its regions outlined and numbered")
    max_side: int = Field(1024, ge=64, description="longer side of the image sent, pixels; larger ones are shrunk")
    prompt: str = Field(
        "default", exclude=True, description="a file of transforms/captioners/prompts, or the path of your own .md; "
        "its hash, not its name, enters the key",
    )
    language: str = Field("en", description="ISO 639-1 code of the language that the prompt asks for")
    max_regions: int = Field(16, ge=0, description="how many regions, the largest first, get a sentence of their own")
    max_relations: int = Field(6, ge=0, description="how many pairs, the largest first, get a sentence of their own")
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


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the captions: the prompt template."""
    return {"prompt": sha256(_template(params).encode())}


def open_captioner(params: Params, context: Context) -> Captioner:
    """Connects lazily: nothing is sent before the first sample. Raises ConfigError for a missing key or prompt."""
    alike = set(Endpoint.model_fields) & set(Params.model_fields)
    endpoint = Endpoint(**{name: getattr(params, name) for name in alike})
    client = Client(endpoint, RequestCache(context.cache / "llm"))
    return Captioner(params, _template(params), client, context.policies)


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
        """Rows of `texts` (without sample_id, text_id, licence): global, then regions, then relations.

        An image that nothing is known about gets none from a model that cannot see it. What the request cost stands on
        the first row. Needs the sample's pixels where `sees_images`. Raises as `infra.llm.Client.ask` does.
        """
        limits = self.params.max_regions, self.params.max_relations, self.params.quote_chars
        brief = brief_of(facts, *limits)
        if not brief.cites:
            return []
        policy = cast(Policy, self.policies.get(str(sample.image["source"]), "local"))
        answer = self.client.ask(self._messages(brief, sample), answer_form(brief), policy)
        common = {
            "language": self.params.language, "generator": f"{NAME}@{VERSION}", "model": answer.model,
            "prompt_sha256": sha256(self.template.encode()), "request_sha256": answer.request_sha256,
        }
        rows = [{**row, **common} for row in _texts(answer.data, brief, facts)]
        rows[0] |= _bill(answer)
        return list(rows)

    def _messages(self, brief: Brief, sample: SampleRows) -> list[Message]:
        system = Message("system", self.template)
        if not self.params.sees_images:
            return [system, Message("user", brief.text)]
        rois = {row["roi_id"]: row for row in sample.rows("rois")}
        pixels = sample.pixels()
        zoom = max(1, LEGIBLE // max(pixels.shape)) if brief.shown else 1
        image = draw_regions(pixels, [rois[roi] for roi in brief.shown], zoom=zoom)
        image.thumbnail((self.params.max_side, self.params.max_side), Image.Resampling.LANCZOS)
        note = "The image is attached. Number 1 is drawn on region_1, and so on.\n" if brief.shown else ""
        return [system, Message("user", brief.text + (note or "The image is attached.\n"), (Picture.of(image),))]


def _texts(data: BaseModel, brief: Brief, facts: Facts) -> Iterator[dict[str, Any]]:
    said = data.model_dump()
    cited = [brief.cites[handle] for handle in said["global_evidence"]]
    yield {"kind": "global", "roi_ids": [], "text": said["global_text"], "evidence": evidence(facts, cited)}
    for handle, roi in brief.regions.items():
        yield {"kind": "region", "roi_ids": [roi], "text": said["regions"][handle], "evidence": [f"roi:{roi}"]}
    for handle, pair in brief.relations.items():
        rows = [f"roi:{roi}" for roi in pair]
        yield {"kind": "relation", "roi_ids": list(pair), "text": said["relations"][handle], "evidence": rows}


def _bill(answer: Answer[Any]) -> dict[str, Any]:
    return {"tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out, "cost_usd": answer.cost_usd}


def _template(params: Params) -> str:
    if params.prompt.endswith(".md"):
        return resolve(params.prompt).read_text(encoding="utf-8")
    path = PROMPTS / f"{params.prompt}.md"
    if path.parent != PROMPTS or not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.md")))
        raise ConfigError(f"there is no prompt {params.prompt!r}; known: {known}, or give the path of an .md file")
    return path.read_text(encoding="utf-8")
