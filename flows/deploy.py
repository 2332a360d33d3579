"""`medloom deploy` and `medloom worker`: the build as a scheduled deployment that workers of any machine run.

The invariants: deploying is code, so that the same command twice changes nothing; one build of a deployment runs at a
time, whoever asks for it; and a secret is a block of the server that a worker puts into the environment of the run,
never a parameter, which the server shows to everybody.

    export PREFECT_API_URL=http://127.0.0.1:4200/api
    medloom deploy chest.yaml --home /data/chest --cron "0 3 * * *" --secret OPENAI_API_KEY=openai --notify webhook/ops
    medloom worker
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import automations
from flows.options import Changes, Home, RecipeName, RunnerName
from flows.server import answers, become, portable, read_secrets, served
from infra.errors import ConfigError
from infra.mirror import address_of
from infra.settings import be_quiet

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "medloom"
COMMAND = "python -P -m prefect.engine"
"""What a worker runs; `medloom worker` puts its own Python first on the path."""
DEAD_AFTER_S = 180
OVERLAPS = {"cancel-new": "CANCEL_NEW", "enqueue": "ENQUEUE"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_KEY = re.compile(r"(?i)(^|[._-])(api_?key|access_?key|secret_?key|token|secret|password|passwd|credentials?)$")
_SECRET_VALUE = re.compile(r"\bsk-[\w-]{16}|://[^/@\s]*:[^/@\s]+@")
"""a key of a model endpoint, and an address with a password in it"""


@dataclass(frozen=True)
class Wanted:
    """A deployment as it is to be."""

    recipe: str
    home: Path
    cron: str
    runner: str = "ray"
    changes: Sequence[str] = ()
    pool: str = POOL
    overlap: str = "cancel-new"
    limits: Mapping[str, int] = field(default_factory=dict)
    """outside service -> builds that may use it at once, over all deployments"""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """variable of the run's environment -> name of a Secret block"""
    notify: str | None = None
    dead_after_s: int = DEAD_AFTER_S


def deploy(
    recipe: RecipeName,
    home: Home,
    cron: Annotated[str, typer.Option(help="When to build, as a cron line in UTC.")] = "0 3 * * *",
    pool: Annotated[str, typer.Option(help="Work pool of type process; made where it is missing.")] = POOL,
    runner: RunnerName = "ray",
    set: Changes = [],  # noqa: B006
    overlap: Annotated[
        str, typer.Option(help="A run that is due while one runs: cancel-new (it is left out) or enqueue (it waits).")
    ] = "cancel-new",
    limit: Annotated[
        list[str],
        typer.Option(metavar="NAME=N", help="At most N builds at once that use llm, ncbi, a connector or a stage."),
    ] = [],  # noqa: B006
    secret: Annotated[
        list[str], typer.Option(metavar="VARIABLE=BLOCK", help="Put a Secret block into the run's environment.")
    ] = [],  # noqa: B006
    notify: Annotated[
        str | None, typer.Option(metavar="TYPE/NAME", help="Block told of runs that fail, crash or come late.")
    ] = None,
    dead_after: Annotated[
        int, typer.Option(help="Seconds of silence after which a run counts as crashed.")
    ] = DEAD_AFTER_S,
) -> None:
    """Make RECIPE's build a scheduled deployment of the Prefect server at PREFECT_API_URL; again, to change it."""
    use_server(home)
    typer.echo(make_deployment(Wanted(
        recipe, home, cron, runner, set, pool, overlap, _limits(limit), _pairs(secret, "--secret VARIABLE=BLOCK"),
        notify, dead_after,
    )))


def worker(
    home: Home,
    pool: Annotated[str, typer.Option(help="Work pool whose runs it takes.")] = POOL,
    name: Annotated[str | None, typer.Option(help="Name that the UI shows.")] = None,
    limit: Annotated[int | None, typer.Option(help="Runs at once, at the most.")] = None,
    health_port: Annotated[int | None, typer.Option(help="Tell on 127.0.0.1 at this port whether it is well.")] = None,
) -> None:
    """Run the builds that deployments of a pool schedule, until Ctrl-C; builds under way then go on to their end."""
    be_quiet()
    use_server(home)
    words = worker_words(pool)
    environment = worker_environment(os.environ)
    if health_port is not None:
        words.append("--with-healthcheck")
        environment |= {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(health_port)}
    named = ["--name", name] if name else []
    become(*words, *named, *(["--limit", str(limit)] if limit else []), environment=environment)


def worker_words(pool: str) -> list[str]:
    """Prefect's command that runs a worker; it never installs anything."""
    return ["worker", "start", "--pool", pool, "--type", "process", "--install-policy", "never"]


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """With this Python first on the path, so that COMMAND is run by it."""
    return {**environment, "PATH": os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))}


def use_server(home: Path) -> None:
    """Point Prefect at the server to use, before it is imported. Raises ConfigError where there is none."""
    read_secrets()
    api = os.environ.get("PREFECT_API_URL") or served(home).get("api")
    if not api:
        raise ConfigError("no Prefect server is known: set PREFECT_API_URL, or start one by `medloom server`")
    if not answers(api):
        raise ConfigError(f"no Prefect server answers at PREFECT_API_URL={api}; start it by `medloom server`")
    os.environ["PREFECT_API_URL"] = api


def checked(wanted: Wanted) -> tuple[str, Any]:
    """The deployment's name and schedule. Raises ConfigError for what is wrong before any server is asked."""
    from flows.recipe import find_recipe, load_recipe

    refuse_secrets(wanted.changes)
    name = load_recipe(find_recipe(wanted.recipe), wanted.changes).name  # must fail here, not at three in the morning
    if wanted.overlap not in OVERLAPS:
        raise ConfigError(f"--overlap {wanted.overlap!r} is none of {', '.join(OVERLAPS)}")
    automations.beat(wanted.dead_after_s)
    from prefect.schedules import Cron

    try:
        return name, Cron(wanted.cron, timezone="UTC")
    except ValueError as error:
        raise ConfigError(f"--cron {wanted.cron!r} is no cron line; five fields such as '0 3 * * *' are") from error


def make_deployment(wanted: Wanted) -> str:
    """Make or change the deployment, its pool, limits and automations; returns a line about it.

    Raises ConfigError as `checked` does, when a block is not there, or when another dataset's deployment has the name.
    Nothing was changed then.
    """
    name, schedule = checked(wanted)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for block in wanted.secrets.values():
            automations.find_block(client, f"secret/{block}")
        if wanted.notify:
            automations.find_block(client, wanted.notify)
        _same_home(client, name, wanted.home)
        _pool(client, wanted.pool)
        for service, most in sorted(wanted.limits.items()):
            client.upsert_global_concurrency_limit_by_name(service, most)
        made = _apply(wanted, name, schedule)
        automations.mark_the_dead(client, made, f"build/{name}", wanted.dead_after_s)
        if wanted.notify:
            automations.tell(client, made, f"build/{name}", wanted.notify)
        else:
            automations.tell_nobody(client, f"build/{name}")
    return f"deployment  build/{name} in the pool {wanted.pool}, scheduled at {wanted.cron} (UTC)"


def _apply(wanted: Wanted, name: str, schedule: Any) -> Any:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.flow import build

    deployment = build.to_deployment(
        name=name, schedule=schedule, tags=["medloom"], work_pool_name=wanted.pool,
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy(OVERLAPS[wanted.overlap])
        ),
        parameters={
            "recipe": portable(wanted.recipe), "home": address_of(wanted.home), "runner": wanted.runner,
            "changes": list(wanted.changes),
        },
        job_variables={
            "command": COMMAND,
            "env": {
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(automations.beat(wanted.dead_after_s)),
                # the worker fills these in; the server keeps the reference only
                **{variable: f"{{{{ prefect.blocks.secret.{block} }}}}" for variable, block in wanted.secrets.items()},
            },
        },
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return deployment.apply()  # type: ignore[union-attr]


def _pool(client: SyncPrefectClient, name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    else:
        if found.type != "process":
            raise ConfigError(f"the work pool {name!r} is of type {found.type!r}, a build needs process: name another")


def _same_home(client: SyncPrefectClient, name: str, home: Path) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        other = client.read_deployment_by_name(f"build/{name}").parameters.get("home")
    except ObjectNotFound:
        return
    if other != address_of(home):
        raise ConfigError(
            f"the deployment build/{name} builds {other}, this is {address_of(home)}: give a recipe another `name:`, "
            "or delete that deployment in the UI"
        )


def refuse_secrets(changes: Sequence[str]) -> None:
    """Raises ConfigError when a change of the recipe holds a secret; the message does not repeat it."""
    known = [value for name, value in os.environ.items() if len(value) >= 8 and _SECRET_KEY.search(name)]
    for change in changes:
        key, _, value = change.partition("=")
        if _SECRET_KEY.search(key) or _SECRET_VALUE.search(value) or any(secret in value for secret in known):
            raise ConfigError(
                f"the change of {key} looks like a secret, and whoever sees the server sees parameters: put it into a "
                "Secret block and deploy with --secret VARIABLE=BLOCK, or into the environment"
            )


def _pairs(words: Sequence[str], form: str) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    for name, value in pairs.items():
        if not (_NAME.fullmatch(name) and value):
            raise ConfigError(f"{form} is the form; {name!r} is no name, or nothing follows it")
    return pairs


def _limits(words: Sequence[str]) -> dict[str, int]:
    pairs = _pairs(words, "--limit NAME=N")
    for name, value in pairs.items():
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"--limit {name}={value}: 1 or more builds")
    return {name: int(value) for name, value in pairs.items()}
