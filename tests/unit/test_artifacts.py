"""What a flow run shows: figures of the catalog, and nobody's words as markup."""

from __future__ import annotations

import json
from pathlib import Path

from makehome import make_home

from catalog.builds import last_snapshot
from flows.artifacts import artifacts


def test_the_dashboard_has_costs_disagreement_and_rejects(tmp_path: Path) -> None:
    def change(rows: dict[str, list[dict[str, object]]]) -> None:
        for check, row in zip((0.2, 0.9), rows["checks"], strict=False):
            row.update(check="agreement/liver", value=check, detail="one and other: <b>far</b> apart")

    home = make_home(tmp_path, change=change)
    made = last_snapshot(home)
    assert made
    shown = {artifact.key: artifact for artifact in artifacts(home, made, "http://127.0.0.1:4201")}
    assert list(shown) == ["dashboard", "funnel", "rejects", "contact-sheet", "review-sheet", "report"]
    board = shown["dashboard"].data
    texts = [line for line in board.splitlines() if "small\\-lm" in line]
    assert len(texts) == 1 and texts[0].startswith("| caption | small\\-lm |"), board
    assert "| agreement on liver | 2 | 0.55 | " in board and "<b>" not in board
    assert "](http://127.0.0.1:4201/000001/review.html)" in board
    rejects = json.loads(shown["rejects"].data)
    assert all(f"| {row['source']} | {row['stage']} | {row['outcome']} |" in board for row in rejects) and rejects
    assert next(artifacts(home, made)).data.count("](file://") == 4
