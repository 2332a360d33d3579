"""Where a run stands: its home, its addresses, its secret, and the switches that keep it quiet.

Four addresses scale medloom and no code changes: the runner, the storage home, the catalog inside it, and the Prefect
server. Secrets come from the environment or a file (`NAME_FILE`), never from a recipe or a flow parameter.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from infra import mirror
from infra.errors import ConfigError
from infra.redact import know

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No telemetry and no download that nobody asked for. A value already set in the environment wins."""

PUBLIC_KEY = b"medloom: identifiers of public data"
"""Pseudonym key of sources whose identifiers are already public (published test collections)."""


def be_quiet() -> None:
    """Set the offline and no-telemetry switches of the libraries we run on, before they are imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def secret(name: str) -> str | None:
    """A secret from the environment variable `name`, or from the file that `name`_FILE names; None when unset."""
    value = os.environ.get(name)
    if not value and (path := os.environ.get(f"{name}_FILE")):
        value = Path(path).read_text().strip()
    know(value)  # and so it stands in no log, error or artifact
    return value or None


def pseudonym_key(home: Path) -> bytes:
    """The key that private identifiers are hashed with: MEDLOOM_DEID_KEY, or one made once for this home.

    Two homes agree on pseudonyms only when they are given the same key.
    """
    if given := secret("MEDLOOM_DEID_KEY"):
        return given.encode()
    if mirror.remote(home):
        raise ConfigError(
            f"{home} is a working copy of a bucket, which holds no secrets: set MEDLOOM_DEID_KEY, the same on every "
            "machine, so that they agree on pseudonyms"
        )
    path = home / "secrets" / "deid.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".deid.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        try:
            os.link(draft, path)  # fails if another process was first: its key stands
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip().encode()


def default_home() -> Path:
    """The dataset's home when none is named: MEDLOOM_HOME, else ./medloom-home."""
    return mirror.home_of(os.environ.get("MEDLOOM_HOME", "medloom-home"))
