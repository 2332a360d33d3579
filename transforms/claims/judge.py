"""A language model's opinion of a text, beside the rules: a row `judge`, never a change of theirs.

The invariant: what a judge says is stored under its own name; a judge that cannot be asked, or whose answer is no use,
leaves "unknown" and the reason, and costs the sample nothing.

    - use: verify
      judge: {base_url: "http://127.0.0.1:9014/v1", model: local}
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Terminal
from infra.keys import sha256
from infra.llm import Address, Client, Endpoint, Message, Policy, RequestCache
from transforms.captioners.brief import brief_of
from transforms.facts import Facts
from transforms.stage import Context, SampleRows

PROMPT = Path(__file__).with_name("judge.md")
REGIONS, PAIRS, QUOTED = 16, 6, 800
"""Most regions and pairs of a brief, and characters of a quote."""


class JudgeParams(BaseModel):
    """Where the judge is served. Fields that cannot change a verdict are left out of the stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="model id, as the server knows it")
    base_url: Address = Field(exclude=True, description="address of the API, usually ending in /v1")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", exclude=True, description="NAME of the environment variable that holds the key; null: none"
    )
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    temperature: float | None = Field(0, ge=0, description="null: not sent, for models that refuse it")
    seed: int | None = Field(None, description="sent where set")
    timeout_s: float = Field(120, gt=0, exclude=True, description="longest wait for the server to say anything")
    deadline_s: float = Field(600, gt=0, exclude=True, description="no attempt is begun after this many seconds")
    attempts: int = Field(6, ge=1, exclude=True, description="attempts at a request that could not be served")


class Opinion(BaseModel):
    """What the judge answers."""

    model_config = ConfigDict(extra="forbid")

    claims: int = Field(ge=0, le=200)
    supported: int = Field(ge=0, le=200)
    reasons: list[str] = Field(max_length=50)


def prompt_hash() -> str:
    """What else decides a verdict."""
    return sha256(PROMPT.read_bytes())


def open_judge(params: JudgeParams, context: Context) -> Judge:
    """Connects lazily. Raises ConfigError for a missing key."""
    return Judge(Client(Endpoint.of(params), RequestCache(context.cache / "llm")), context.policies)


@dataclass(frozen=True)
class Judge:
    """Callable on a text and what is known of its sample; close it, or let it be collected."""

    client: Client
    policies: Mapping[str, str]

    @property
    def close(self) -> weakref.finalize[..., Client]:
        return self.client.close

    def __call__(
        self, text: Mapping[str, Any], facts: Facts, sample: SampleRows
    ) -> tuple[str, float | None, str | None]:
        """Verdict, share of claims it finds supported, reasons. Raises Transient where the server does not serve."""
        policy = cast(Policy, self.policies.get(str(sample.image["source"]), "local"))
        brief = brief_of(facts, REGIONS, PAIRS, QUOTED)
        judged = json.dumps({"kind": text["kind"], "text": text["text"]}, ensure_ascii=False).replace("<", "\\u003c")
        messages = [
            Message("system", PROMPT.read_text(encoding="utf-8")),
            Message("user", f"{brief.text}<judged>\n{judged}\n</judged>\n"),
        ]
        try:
            said = self.client.ask(messages, Opinion, policy).data
        except Terminal as error:
            return "unknown", None, str(error)[:500]
        if not said.claims or said.supported > said.claims:
            return "unknown", None, "; ".join(said.reasons)[:500] or "finds no claim"
        share = said.supported / said.claims
        return "pass" if share == 1 and not said.reasons else "fail", share, "; ".join(said.reasons)[:500] or None
