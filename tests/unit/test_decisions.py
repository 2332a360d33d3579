"""Decisions: kept whole and in order, about what was seen, turned into rows by a stage, and measured for agreement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from catalog import decisions
from catalog.decisions import Decision, agreement, decide, digest, kappa, latest, read, reviewer, seen_roi, seen_text
from catalog.schema import LAYERS
from infra.errors import ConfigError
from transforms.decisions import Params, make_stage
from transforms.decoded import Region
from transforms.regions import roi_row
from transforms.stage import Context, SampleRows, fingerprint

ADA, BOB = "r-00000001", "r-00000002"
TEXT = {
    "text_id": "t1", "roi_ids": ["x"], "kind": "global", "language": "en", "text": "A liver.", "evidence": ["roi:x"],
    "generator": "template@1", "licence": "CC-BY-4.0",
}


def said(verdict: str, about: str = "text:t1", who: str = ADA, seen: str | None = None, **more) -> Decision:
    return Decision(
        reviewer=who, sample_id="s", about=about, seen=seen or seen_text(TEXT["text"]), verdict=verdict, **more
    )


def region() -> dict:
    mask = np.zeros((40, 60), bool)
    mask[5:15, 10:30] = True
    return roi_row("s", Region("liver", "organ", mask=mask), (40, 60), expert="ct@1", origin="predicted",
                   trust="boundary")


def rows(home: Path, roi: dict | None = None, text: dict = TEXT) -> dict:
    stage = make_stage(Params(), Context(home))
    image = {"sample_id": "s", "width": 60, "height": 40}
    made = stage.row(SampleRows(image, {"texts": [text], "rois": [roi] if roi else []}), stage.open())
    for layer, new in made.items():
        LAYERS[layer].table({"sample_id": "s", **row} for row in new)
    return made


def test_decisions_are_numbered_and_read_back_in_order(tmp_path: Path) -> None:
    assert (read(tmp_path), decisions.count(tmp_path)) == ([], 0)
    first, second = said("accept"), said("reject", note="wrong organ")
    assert [decide(tmp_path, first), decide(tmp_path, second)] == [1, 2]
    assert read(tmp_path) == [first, second] and read(tmp_path, 1) == [first]
    assert latest(read(tmp_path)) == [second]
    assert sorted(p.name for p in (tmp_path / "decisions").glob("*.json")) == ["00000001.json", "00000002.json"]


def test_what_a_killed_writer_left_is_no_decision_and_a_broken_file_is_named(tmp_path: Path) -> None:
    decide(tmp_path, said("accept"))
    (tmp_path / "decisions" / ".tmp-1-00000002.json").write_text("{")
    assert len(read(tmp_path)) == 1
    (tmp_path / "decisions" / "00000002.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"00000002\.json is no decision"):
        read(tmp_path)
    assert len(read(tmp_path, 1)) == 1, "those after it are another fact"


@pytest.mark.parametrize("wrong", [
    {"verdict": "correct"}, {"verdict": "accept", "text": "x"}, {"verdict": "correct", "label": "x"},
    {"verdict": "correct", "about": "roi:x", "text": "x"},
    {"verdict": "correct", "about": "roi:x", "box": [5, 5, 5, 9]},
    {"verdict": "maybe"}, {"verdict": "accept", "about": "sample:s"}, {"verdict": "accept", "who": "Ada Lovelace"},
    {"verdict": "accept", "note": "a\0b"}, {"verdict": "correct", "text": "   "},
])
def test_what_says_nothing_clear_is_no_decision(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        said(**wrong)


def test_a_reviewer_is_a_stable_pseudonym_of_the_home(tmp_path: Path) -> None:
    name = reviewer(tmp_path, "Ada  Lovelace")
    assert name == reviewer(tmp_path, "ada lovelace") != reviewer(tmp_path, "Bob")
    assert decisions.REVIEWER.fullmatch(name) and name != reviewer(tmp_path / "other", "Ada Lovelace")
    with pytest.raises(ConfigError):
        reviewer(tmp_path, "  ")


def test_no_decision_no_rows(tmp_path: Path) -> None:
    assert rows(tmp_path) == {}


def test_verdicts_on_a_text_become_checks_and_a_correction_a_text(tmp_path: Path) -> None:
    decide(tmp_path, said("accept", who=BOB))
    decide(tmp_path, said("correct", text="A spleen.", note="wrong side"))
    made = rows(tmp_path)
    checks = {c["check"]: c for c in made["checks"]}
    assert (checks[f"review/{BOB}"]["value"], checks[f"review/{BOB}"]["verdict"]) == (1.0, "pass")
    assert (checks[f"review/{ADA}"]["value"], checks[f"review/{ADA}"]["verdict"]) == (0.0, "fail")
    assert checks["reviewed"]["value"] == 2.0 and checks["reviewed"]["text_id"] == ""
    (text,) = made["texts"]
    assert (text["text"], text["generator"], text["kind"], text["roi_ids"]) == ("A spleen.", "human", "global", ["x"])
    assert text["evidence"] == ["roi:x", "text:t1"] and text["text_id"] in checks[f"review/{ADA}"]["detail"]


def test_the_last_word_of_a_reviewer_counts(tmp_path: Path) -> None:
    decide(tmp_path, said("correct", text="A spleen."))
    decide(tmp_path, said("accept"))
    made = rows(tmp_path)
    assert made["texts"] == [] and [c["verdict"] for c in made["checks"]] == ["pass", "pass"]


def test_a_decision_about_a_text_that_changed_or_went_is_stale(tmp_path: Path) -> None:
    decide(tmp_path, said("correct", text="A spleen."))
    decide(tmp_path, said("reject", about="text:gone"))
    made = rows(tmp_path, text={**TEXT, "text": "A kidney."})
    (check,) = made["checks"]
    assert (check["check"], check["verdict"], check["value"], made["texts"]) == ("reviewed", "unknown", 0.0, [])
    assert "text:t1" in check["detail"] and "text:gone" in check["detail"]


def test_a_corrected_region_is_a_row_of_human_origin(tmp_path: Path) -> None:
    roi = region()
    about = f"roi:{roi['roi_id']}"
    decide(tmp_path, said("correct", about=about, seen=seen_roi(roi), label="spleen"))
    decide(tmp_path, said("correct", about=about, who=BOB, seen=seen_roi(roi), box=[0, 0, 30, 20]))
    renamed, moved = rows(tmp_path, roi)["rois"]
    assert (renamed["label"], renamed["origin"], renamed["expert"]) == ("spleen", "human", f"human:{ADA}")
    assert (renamed["mask"], renamed["box"], renamed["trust"]) == (roi["mask"], roi["box"], "boundary")
    assert (moved["label"], moved["box"], moved["mask"], moved["trust"]) == ("liver", [0, 0, 30, 20], None, "box")
    assert len({roi["roi_id"], renamed["roi_id"], moved["roi_id"]}) == 3


def test_a_rejected_region_stays_and_is_said_to_be_wrong(tmp_path: Path) -> None:
    roi = region()
    decide(tmp_path, said("reject", about=f"roi:{roi['roi_id']}", seen=seen_roi(roi)))
    made = rows(tmp_path, roi)
    assert made["rois"] == [] and made["checks"][0]["check"] == f"review/{ADA}/roi:{roi['roi_id']}"
    assert made["checks"][0]["verdict"] == "fail"


def test_the_key_moves_with_what_is_said_and_not_with_when(tmp_path: Path) -> None:
    def of(*given: Decision) -> str:
        return digest(given)

    assert of(said("accept", made_at="2026-01-01T00:00:00+00:00")) == of(said("accept"))
    assert of(said("accept")) != of(said("reject")) and of(said("reject"), said("accept")) == of(said("accept"))
    before = fingerprint(make_stage(Params(), Context(tmp_path)))
    decide(tmp_path, said("accept"))
    assert fingerprint(make_stage(Params(), Context(tmp_path))) != before


def test_decisions_made_while_a_build_runs_wait_and_changed_ones_stop_it(tmp_path: Path) -> None:
    decide(tmp_path, said("accept"))
    stage = make_stage(Params(), Context(tmp_path))
    decide(tmp_path, said("reject"))
    assert [d.verdict for d in stage.open()["s"]] == ["accept"]
    path = tmp_path / "decisions" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": "reject"}))
    with pytest.raises(ConfigError, match="changed while the build ran"):
        stage.open()


def test_kappa_is_cohens() -> None:
    # the example of the article on Cohen's kappa that most textbooks repeat: 20 yes-yes, 5, 10, 15 no-no
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    assert kappa([]) is None and kappa([(1, 1)] * 3) is None and kappa([(1, 0), (0, 1)]) == -1.0


def test_agreement_counts_what_two_judged_as_they_saw_the_same() -> None:
    made = [said(v, f"text:{n}", who) for who, verdicts in (
        (ADA, ("accept", "reject", "accept", "reject")), (BOB, ("accept", "accept", "accept", "reject")),
    ) for n, v in enumerate(verdicts)]
    made.append(said("accept", "text:9", ADA, seen="0" * 24))
    made.append(said("accept", "text:9", BOB, seen="1" * 24))
    found = agreement(made)
    assert found.reviewers == {ADA: {"accept": 3, "reject": 2}, BOB: {"accept": 4, "reject": 1}}
    (pair,) = found.pairs
    assert (pair.both, pair.agreed, pair.kappa) == (4, 3, 0.5)
