"""Automations of a deployment in the Prefect server, as code: dead runs are marked, and somebody is told.

The invariant: made again under the same name they replace themselves, so `medloom deploy` may be run any number of
times; and a message that leaves the server names a run and its state, never a parameter.

Prefect marks no run as dead by itself: its process sends a heartbeat every so often, and a server of one's own needs an
automation that minds when they stop (Prefect's documentation, "How to detect and respond to zombie flows").
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from infra.errors import ConfigError

if TYPE_CHECKING:
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import SyncPrefectClient

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = tuple(f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut"))
BAD = tuple(f"prefect.flow-run.{name}" for name in ("Failed", "Crashed", "TimedOut", "Late"))
"""What somebody is told of: a run that went wrong, and one that no worker takes up."""
LEAST_BEAT_S = 30
"""Prefect sends heartbeats no more often."""
SUBJECT = "medloom: {{ flow_run.name }} is {{ flow_run.state.name }}"
BODY = "The build {{ flow_run.name }} of the deployment {{ deployment.name }} is {{ flow_run.state.name }}: " \
    "{{ flow_run|ui_url }}"
PAYLOAD = json.dumps({
    "text": BODY, "deployment": "{{ deployment.name }}", "flow_run": "{{ flow_run.name }}",
    "flow_run_id": "{{ flow_run.id }}", "state": "{{ flow_run.state.name }}",
}, indent=1)


def beat(dead_after_s: int) -> int:
    """Seconds between the heartbeats of a run that is held dead after so many. Raises ConfigError for too few."""
    if dead_after_s < LEAST_BEAT_S + 10:
        raise ConfigError(f"--dead-after {dead_after_s}: Prefect's heartbeats are {LEAST_BEAT_S} s apart at the least, "
                          f"so give {LEAST_BEAT_S + 10} or more")
    return max(LEAST_BEAT_S, dead_after_s // 3)


def mark_the_dead(client: SyncPrefectClient, deployment: UUID, name: str, dead_after_s: int) -> None:
    """Runs of the deployment become Crashed when nothing was heard of them for so many seconds."""
    from prefect.automations import ChangeFlowRunState
    from prefect.client.schemas.objects import StateType

    _put(
        client, f"{name}: dead runs", "marks a run Crashed whose heartbeats stopped, so that the next one may start",
        deployment, [ChangeFlowRunState(
            state=StateType.CRASHED, name=None,
            message=f"nothing was heard of this run for {dead_after_s} s: its process or machine is gone. What was "
            "committed stays, the next run goes on from there",
        )],
        after={HEARTBEAT}, expect={HEARTBEAT, *ENDED}, posture="Proactive", threshold=1, within=dead_after_s,
    )


def tell(client: SyncPrefectClient, deployment: UUID, name: str, block: str) -> None:
    """A webhook or notification block, named TYPE/NAME, is called for every run that goes wrong or is not taken up.

    Raises ConfigError when there is no such block.
    """
    from prefect.automations import CallWebhook, SendNotification

    document = find_block(client, block)
    action = (
        CallWebhook(block_document_id=document, payload=PAYLOAD) if block.startswith("webhook/")
        else SendNotification(block_document_id=document, subject=SUBJECT, body=BODY)
    )
    _put(client, f"{name}: trouble", f"tells {block} of runs that failed, crashed or are late", deployment, [action],
         expect=set(BAD), posture="Reactive", threshold=1, within=0)


def tell_nobody(client: SyncPrefectClient, name: str) -> None:
    """Remove what `tell` made."""
    for known in client.read_automations_by_name(f"{name}: trouble"):
        client.delete_automation(known.id)


def find_block(client: SyncPrefectClient, block: str) -> UUID:
    """The id of a block by TYPE/NAME. Raises ConfigError when it is not there."""
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    try:
        return client.read_block_document_by_name(name, kind, include_secrets=False).id
    except ObjectNotFound:
        raise ConfigError(
            f"the Prefect server has no block {block!r} (TYPE/NAME, as secret/openai, webhook/ops): make it in its "
            "UI under Blocks"
        ) from None


def _put(
    client: SyncPrefectClient, name: str, about: str, deployment: UUID, actions: list[Any], **trigger: Any
) -> None:
    from prefect.automations import AutomationCore, EventTrigger

    wanted = AutomationCore(
        name=name, description=about, enabled=True, actions=actions,
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"}, for_each={"prefect.resource.id"},
            match_related={"prefect.resource.id": f"prefect.deployment.{deployment}"}, **trigger,
        ),
    )
    known = client.read_automations_by_name(name)
    if not known:
        client.create_automation(wanted)
    elif not _same(known[0], wanted):  # a change makes the server forget which runs it was minding
        client.update_automation(known[0].id, wanted)


def _same(known: AutomationCore, wanted: AutomationCore) -> bool:
    said = {"name", "description", "enabled", "trigger", "actions"}
    return known.model_dump(include=said) == wanted.model_dump(include=said)
