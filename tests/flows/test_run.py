"""What `medloom build` says when Prefect's server fails under it: words, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from sources import make_images

from flows import run
from infra.errors import MedloomError

RECIPE = "name: words\nsources:\n  - {{name: p, use: images, layout: imagefolder, root: {root}, identifiers: public}}\n"


def fault(status: int) -> httpx.HTTPStatusError:
    asked = httpx.Request("POST", "http://127.0.0.1:4200/api/flow_runs/x/set_state")
    return httpx.HTTPStatusError(f"{status}\nmore", request=asked, response=httpx.Response(status, request=asked))


def wrapped(error: Exception) -> RuntimeError:
    """As Prefect's engine does when it cannot tell its server of a state."""
    outer = RuntimeError("the engine stopped")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(("raised", "words"), [
    (fault(500), "the Prefect server at http://127.0.0.1:4200/api failed (500); what was committed stays"),
    (wrapped(fault(503)), "failed (the engine stopped); what was committed stays"),
    (httpx.ConnectError("refused"), "went away (refused); what was committed stays"),
    (fault(422), None),
    (RuntimeError("a bug"), None),
])
def test_a_server_that_fails_is_told_from_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, words: str | None
) -> None:
    from flows import flow

    def build(*_: Any, **__: Any) -> Any:
        raise raised

    make_images(tmp_path / "images", 1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=tmp_path / "images"))
    monkeypatch.setattr(flow, "build", build)
    monkeypatch.setattr(run, "use_prefect", lambda home: None)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    with pytest.raises(Exception) as caught:
        run.run_build(str(recipe), tmp_path / "home", "inline", ())
    assert words in str(caught.value) and isinstance(caught.value, MedloomError) if words else caught.value is raised
