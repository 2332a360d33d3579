"""What a conversation with a model is made of: an endpoint, messages, pictures and a reply; nothing is sent here.

The invariant: an endpoint names its key's environment variable, never the key, and knows which rows may reach it.

>>> Endpoint(base_url="http://127.0.0.1:9014/v1", model="local").permits("local")
True
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from infra.errors import Transient
from infra.keys import sha256
from infra.outbound import Outbound

if TYPE_CHECKING:
    from PIL import Image

Policy = Literal["local", "approved", "any"]
"""Which addresses a row may reach: this machine; also the hosts in MEDLOOM_APPROVED_ENDPOINTS; everything."""


def _plain(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST… or https://HOST…")
    if parts.username or parts.password or parts.query:
        raise ValueError("may not carry a user, password or query; name the key's variable in api_key_env")
    return address


Address = Annotated[str, AfterValidator(_plain)]
"""An http(s) address that carries no secret."""


class Endpoint(BaseModel):
    """Where a model is served and how it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: Address = Field(description="address of the API, usually ending in /v1")
    model: str
    api_key_env: str | None = Field(None, description="NAME of the environment variable (or NAME_FILE) with the key")
    sees_images: bool = False
    price_in: float | None = Field(None, ge=0, description="USD per million prompt tokens; null: unknown")
    price_out: float | None = Field(None, ge=0, description="USD per million answer tokens; null: unknown")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = Field(0, ge=0, description="null: not sent, for models that refuse it")
    seed: int | None = None
    timeout_s: float = Field(120, gt=0, description="longest wait for a server to connect, or to say anything")
    deadline_s: float = Field(600, gt=0, description="no attempt is begun after this many seconds")
    attempts: int = Field(6, ge=1, description="attempts at a request that the server could not serve")
    concurrency: int = Field(4, ge=1, description="requests in flight from one client")
    requests_per_minute: float | None = Field(
        None, gt=0, description="limit that all processes of this machine keep together; null: none"
    )
    tokens_per_minute: float | None = Field(
        None, gt=0, description="the same for prompt tokens (estimated, then corrected) plus answer tokens; null: none"
    )
    outbound: Outbound = Field(
        "plain", description="what is looked for in texts that leave this machine: plain identifiers; strict: also "
        "names with titles, full dates and long numbers, with false alarms; off: nothing",
    )
    batch: bool = Field(
        False, description="collect requests in the outbox for the Batch API instead of asking: each is LLM_PENDING "
        "until its batch is collected",
    )
    batch_discount: float = Field(0.5, ge=0, le=1, description="price of a request in a batch, as a share of the price")

    @classmethod
    def of(cls, params: BaseModel, **stated: Any) -> Self:
        """The endpoint that a plug-in's parameters describe: their fields of the same names, and what is stated."""
        alike = (set(cls.model_fields) & set(type(params).model_fields)) - set(stated)
        return cls(**{name: getattr(params, name) for name in alike}, **stated)

    @property
    def host(self) -> str:
        return str(urlsplit(self.base_url).hostname)

    @property
    def is_loopback(self) -> bool:
        """localhost, 127.0.0.0/8 or ::1."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def permits(self, policy: Policy) -> bool:
        """Whether rows under this policy may be sent here."""
        approved = {h.strip().lower() for h in os.environ.get("MEDLOOM_APPROVED_ENDPOINTS", "").split(",")}
        return policy == "any" or self.is_loopback or (policy == "approved" and self.host in approved)

    @property
    def id(self) -> str:
        """A short hash of the address and the model: what files about the endpoint are named by."""
        return sha256(f"{self.base_url} {self.model}".encode())[:16]

    def body(self, messages: Sequence[Message], answer: type[BaseModel]) -> dict[str, Any]:
        """The chat request, as it is sent here."""
        form = {"name": answer.__name__, "strict": True, "schema": answer.model_json_schema()}
        body = {
            "model": self.model, "messages": [message.sent() for message in messages],
            "response_format": {"type": "json_schema", "json_schema": form}, self.limit_name: self.max_tokens,
        }
        sampling = {"temperature": self.temperature, "seed": self.seed}
        return body | {name: value for name, value in sampling.items() if value is not None}

    def cost(self, tokens_in: int | None, tokens_out: int | None) -> float | None:
        """US dollars; None where a price or a count is unknown."""
        if self.price_in is None or self.price_out is None or tokens_in is None or tokens_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@dataclass(frozen=True)
class Picture:
    """An image to show. Its key is the hash of its pixels, so a new PNG encoder does not pay for old answers again."""

    png: bytes
    sha256: str

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return cls(buffer.getvalue(), sha256(f"{image.mode} {image.size}".encode() + image.tobytes()))


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()

    def sent(self) -> dict[str, Any]:
        """As the chat API wants it."""
        if not self.pictures:
            return {"role": self.role, "content": self.text}
        urls = [f"data:image/png;base64,{base64.b64encode(p.png).decode()}" for p in self.pictures]
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"role": self.role, "content": [{"type": "text", "text": self.text}, *shown]}

    def keyed(self) -> dict[str, Any]:
        """As it stands in the request cache."""
        return {"role": self.role, "text": self.text, "pictures": [p.sha256 for p in self.pictures]}


class Reply(BaseModel):
    """What a server answered, of use or not."""

    model: str
    fingerprint: str | None = None
    content: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    endpoint: str | None = None
    """id of the endpoint that answered; None in caches of older versions"""
    discount: float | None = None
    """what was billed as a share of the price; None: all of it"""

    @classmethod
    def of(cls, body: str) -> Self:
        """The reply in a chat completion; Transient where the body is something else, such as a proxy's page."""
        try:
            completion = json.loads(body)
            choice, usage = completion["choices"][0], completion.get("usage") or {}
            return cls(
                model=completion["model"], fingerprint=completion.get("system_fingerprint"),
                content=_whole(choice["message"].get("content")), refusal=_whole(choice["message"].get("refusal")),
                finish_reason=choice.get("finish_reason"),
                tokens_in=usage.get("prompt_tokens"), tokens_out=usage.get("completion_tokens"),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise Transient("LLM_BAD_RESPONSE", f"not a chat completion: {body[:80]!r}; check base_url") from None


def _whole(words: str | None) -> str | None:
    """The words without halves of surrogate pairs, which JSON may hold and a file may not."""
    return None if words is None else words.encode("utf-8", "replace").decode()
