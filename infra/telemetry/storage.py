"""Calls of an object store, counted from the events of its own client (botocore's): retries and bytes as they are.

The invariant: what is counted is the operation, how it ended and how much was moved; never a bucket, a key or a header.

>>> watch(boto3.client("s3"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.errors import ItemError
from infra.telemetry.state import count, on, timed


def watch(client: Any) -> None:
    """Count and time every call of a boto3 client: operation, outcome, retries and bytes; never bucket or key."""
    events = client.meta.events

    def before(model: Any, context: dict[str, Any], **_: Any) -> None:
        if on():
            context["medloom"] = seen = timed("storage", operation=model.name)
            seen.__enter__()

    def sending(request: Any, **_: Any) -> None:  # each attempt; returning something would answer in the server's place
        length = request.headers.get("Content-Length")
        count("storage_bytes", float(length) if length else None, direction="out")

    def after(http_response: Any, parsed: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        if (seen := context.pop("medloom", None)) is not None:
            told = parsed.get("ResponseMetadata", {})
            count("storage_retries", told.get("RetryAttempts") or None)
            if "Body" in parsed:
                count("storage_bytes", parsed.get("ContentLength"), direction="in")
            failure = None if http_response.status_code < 300 else ItemError(
                str(parsed.get("Error", {}).get("Code", http_response.status_code)), ""
            )
            seen.set(status=http_response.status_code)
            seen.__exit__(None if failure is None else type(failure), failure, None)

    def failed(exception: BaseException, context: dict[str, Any], **_: Any) -> None:
        if (seen := context.pop("medloom", None)) is not None:
            seen.__exit__(type(exception), exception, None)

    events.register("before-call.s3", before)
    events.register("before-send.s3", sending)
    events.register("after-call.s3", after)
    events.register("after-call-error.s3", failed)
