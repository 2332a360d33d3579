"""`medloom demo`: the whole job on real scans that ship inside installed packages, then a look at what came out."""

from __future__ import annotations

from pathlib import Path

import typer

from catalog import report
from catalog.builds import last_snapshot
from catalog.catalog import query
from flows.run import run_build
from flows.show import show

WHAT = """SELECT source, modality, count(*) AS samples, count(DISTINCT group_id) AS groups,
  sum((SELECT count(*) FROM rois r WHERE r.sample_id = i.sample_id)) AS regions,
  sum((SELECT count(*) FROM texts t WHERE t.sample_id = i.sample_id)) AS texts
FROM images i GROUP BY ALL ORDER BY source, modality"""
RICHEST = """SELECT t.sample_id, t.text, t.evidence, t.generator FROM texts t JOIN images i USING (sample_id)
WHERE t.kind = 'global' AND t.generator <> 'source' AND len(t.evidence) <= 12
ORDER BY len(list_distinct(list_transform(t.evidence, lambda e: split_part(e, ':', 1)))) DESC, len(t.evidence) DESC,
  t.sample_id LIMIT 1"""
EVIDENCE = {
    "label": "SELECT name || ' = ' || value || ' (' || origin || ')' FROM labels WHERE label_id = ?",
    "roi": "SELECT label || ', ' || position || ' (' || expert || ', ' || trust || ')' FROM rois WHERE roi_id = ?",
    "measure": "SELECT name || ' = ' || round(value, 2) || coalesce(' ' || unit, '') FROM measures "
    "WHERE measure_id = ?",
    "passage": "SELECT corpus || ': ' || text FROM passages WHERE passage_id = ?",
    "text": "SELECT kind || ': ' || text FROM texts WHERE text_id = ?",
}


def run_demo(home: Path, data: Path | None, runner: str) -> None:
    """Build the demo recipe and print the funnel, an SQL answer, a caption with its evidence, and where things lie."""
    changes = [f"vars.DATA={data.resolve()}"] if data else []
    typer.echo(run_build("demo", home, runner, changes))
    typer.secho("\nWhat became of every item and sample (medloom funnel)", bold=True)
    show(query(home, "SELECT * FROM funnel").to_pylist(), "table")
    typer.secho("\nWhat is in the dataset (medloom sql)", bold=True)
    show(query(home, WHAT).to_pylist(), "table")
    typer.secho("\nOne caption and what it rests on", bold=True)
    _caption(home)
    snapshot = last_snapshot(home)
    assert snapshot is not None, "a build that returned made a snapshot"
    typer.secho("\nWhere it lies", bold=True)
    typer.echo(f"dataset:                  {home.resolve()}")
    typer.echo(f"report and contact sheet: {(home / report.path(snapshot)).resolve()}")
    ask = "SELECT modality, count(*) FROM images GROUP BY 1"
    typer.echo(f"look at it:               medloom browse --home {home}")
    typer.echo(f'ask it something:         medloom sql "{ask}" --home {home}')


def _caption(home: Path) -> None:
    from catalog.catalog import reader

    with reader(home) as con:
        sample, text, evidence, generator = con.execute(RICHEST).fetchone()
        typer.echo(f"{text}   [{generator}, sample {sample}]")
        for item in evidence:
            kind, _, name = item.partition(":")
            if kind == "image":
                found = con.execute(f'SELECT "{name}" FROM images WHERE sample_id = ?', [sample]).fetchone()
            else:
                found = con.execute(EVIDENCE[kind], [name.partition("@")[0]]).fetchone()
            typer.echo(f"  {item}  ->  {str(found[0])[:110]}")
