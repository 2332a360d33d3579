"""Stage over the whole dataset: which samples and texts stand in a benchmark, and how sure that is.

The invariant: nothing is dropped; a verdict "fail" rests on equal bytes, equal pixels, pictures that lie over each
other in their fine structure, or words; a picture that is merely alike (the same view of another patient) gets none.

    - use: contamination
      sets:
        - {name: vqa-rad, root: benchmarks/VQA_RAD}
        - {name: slake, root: benchmarks/Slake1.0, only: ["imgs/*/source.jpg", "test.json"]}
        - {name: pneumoniamnist, root: benchmarks/medmnist, only: ["pneumoniamnist*.npz"]}

Rows of `checks`, `contamination/NAME`, for the samples and texts concerned; `detail` is JSON with the file or row of
the benchmark (`of`) and the `level` of evidence: bytes, pixels, confirmed (perceptual hash, then pixels), candidate
(alike by a hash, pixels in doubt: verdict unknown); of a text: text (word for word) or overlap (runs of 8 words).

    SELECT * FROM images WHERE sample_id NOT IN
      (SELECT sample_id FROM checks WHERE "check" LIKE 'contamination/%' AND verdict = 'fail')

The contents of the benchmark's files enter the key, their place does not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.schema import LAYERS
from infra.storage import resolve
from transforms.curation.contamination import Wording, contents, pictures, texts
from transforms.curation.dataset import Dataset, WholeStage
from transforms.curation.hashes import Near, flat, nearest
from transforms.curation.pairs import compared, signatures, table_of, written
from transforms.decoded import Pixels
from transforms.duplicates import SAME
from transforms.pictures.imagefile import phash, pixel_sha256
from transforms.stage import Context, Outcome, Stage

NAME = "contamination"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}


class Benchmark(BaseModel):
    """One benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="what the check is called after contamination/")
    root: str = Field(exclude=True, description="folder of the benchmark")
    only: tuple[str, ...] = Field((), description="globs of files below root (* crosses folders); empty: all")
    columns: tuple[str, ...] = Field(
        ("question", "caption", "report", "text", "findings", "impression"), description="keys whose strings are texts"
    )


class Params(BaseModel):
    """What a recipe may set for the contamination stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets: tuple[Benchmark, ...] = Field(min_length=1, description="the benchmarks, each with name and root")
    within: int = Field(14, ge=0, le=16, description="bits in which a hash may differ for a pair to be looked at")
    neighbours: int = Field(8, ge=1, description="pictures that each sample is compared with at most, nearest first")
    same: float = Field(SAME, ge=0, le=1, description="correlation from which two pictures are one")
    doubtful: float = Field(0.45, ge=0, le=1, description="correlation from which a pair is worth a person's look")
    overlap: float = Field(
        0.5, gt=0, le=1, description="share of a benchmark text's runs of words that makes a text contaminated"
    )

    @field_validator("sets")
    @classmethod
    def _names(cls, sets: tuple[Benchmark, ...]) -> tuple[Benchmark, ...]:
        if len({one.name for one in sets}) < len(sets):
            raise ValueError("two sets have one name")
        return sets


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for a folder that is not there."""
    return WholeStage(
        NAME, VERSION, reads=("images", "texts", "checks"), writes=("checks",), over=partial(_found, params),
        params=params, ingredients={one.name: contents(resolve(one.root), one.only) for one in params.sets},
        checks_of=("quality",),
    )


Row = Mapping[str, Any]


def _found(params: Params, dataset: Dataset) -> Outcome:
    images = sorted(
        dataset.columns("images", ("sample_id", "sha256", "pixel_sha256", "phash")).to_pylist(),
        key=lambda row: str(row["sample_id"]),
    )
    checks: list[Row] = []
    for one in params.sets:
        checks += _pictures(params, one, dataset, images)
        checks += _texts(params, one, dataset)
    return Outcome({"checks": LAYERS["checks"].table(checks)}, dataset.ids)


def _pictures(params: Params, one: Benchmark, dataset: Dataset, images: list[Row]) -> Iterator[Row]:
    root = resolve(one.root)
    names: list[str] = []
    codes: list[str] = []
    by_bytes: dict[str, str] = {}
    by_pixels: dict[str, str] = {}
    plain: set[int] = set()
    for name, digest, pixels in pictures(root, one.only):
        by_bytes.setdefault(digest, name)
        by_pixels.setdefault(pixel_sha256(pixels), name)
        if flat(phash(pixels)):
            plain.add(len(names))
        names.append(name)
        codes.append(written(pixels))
    rest = []
    for row in images:
        if row["sha256"] in by_bytes:
            yield _check(one, row["sample_id"], "", 1.0, "fail", {"level": "bytes", "of": by_bytes[row["sha256"]]})
        elif row["pixel_sha256"] in by_pixels:
            of = by_pixels[row["pixel_sha256"]]
            yield _check(one, row["sample_id"], "", 1.0, "fail", {"level": "pixels", "of": of})
        elif row["phash"] and not flat(row["phash"]):
            rest.append(row["sample_id"])
    yield from _alike(params, one, dataset, rest, names, codes, plain)


def _alike(
    params: Params, one: Benchmark, dataset: Dataset, samples: list[str], names: list[str], codes: list[str],
    plain: set[int],
) -> Iterator[Row]:
    """Samples that lie over a picture of the benchmark, or over part of it, or have it as a part."""
    own, theirs = signatures(dataset, samples), table_of(codes)
    pairs = [*nearest(own[:, 0], theirs, params.within, params.neighbours)]
    back = [n for n in nearest(theirs[:, 0], own, params.within, params.neighbours) if n.view.startswith("crop")]
    number = {name: place for place, name in enumerate(samples)}

    def ours(wanted: Collection[int]) -> Iterable[tuple[int, Pixels]]:
        return ((number[name], pixels) for name, pixels in dataset.pictures({samples[n] for n in wanted}))

    def benchmark(wanted: Collection[int]) -> Iterable[tuple[int, Pixels]]:
        every = enumerate(pictures(resolve(one.root), one.only))
        return ((place, pixels) for place, (_, _, pixels) in every if place in wanted)

    def kept(found: Iterable[Near], of_benchmark: str) -> list[Near]:
        return [near for near in found if getattr(near, of_benchmark) not in plain]

    best: dict[int, tuple[float, int, Any]] = {}
    for seen in compared(kept(pairs, "other"), ours, benchmark):
        best[seen.near.query] = max(
            best.get(seen.near.query, (-2.0, 0, None)), (seen.match.score, -seen.near.other, seen.match), key=_first
        )
    for seen in compared(kept(back, "query"), benchmark, ours):
        best[seen.near.other] = max(
            best.get(seen.near.other, (-2.0, 0, None)), (seen.match.score, -seen.near.query, seen.match), key=_first
        )
    for sample, (score, other, match) in sorted(best.items()):
        if score >= params.doubtful:
            sure = score >= params.same
            yield _check(one, samples[sample], "", score, "fail" if sure else "unknown", {
                "level": "confirmed" if sure else "candidate", "of": names[-other],
                **({"mirrored": True} if match.mirrored else {}),
                **({"scale": match.scale} if match.scale < 1 else {}),
            })


def _first(entry: tuple[float, int, Any]) -> tuple[float, int]:
    return entry[0], entry[1]


def _texts(params: Params, one: Benchmark, dataset: Dataset) -> Iterator[Row]:
    wording = Wording(texts(resolve(one.root), one.columns, one.only))
    if not wording.names:
        return
    for table in dataset.tables("texts", ("sample_id", "text_id", "text")):
        for row in table.to_pylist():
            hit = wording.found(row["text"])
            if hit and hit[2] >= params.overlap:
                level, of, share = hit
                yield _check(one, row["sample_id"], row["text_id"], share, "fail", {"level": level, "of": of})


def _check(one: Benchmark, sample: str, text: str, value: float, verdict: str, detail: Row) -> Row:
    return {
        "sample_id": sample, "text_id": text, "check": f"contamination/{one.name}", "version": VERSION,
        "value": value, "verdict": verdict, "detail": json.dumps(detail),
    }
