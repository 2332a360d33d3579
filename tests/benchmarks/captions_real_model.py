"""Captions of real samples by the template and by the small local model, for a person to read.

    .venv/bin/python tests/benchmarks/captions_real_model.py HOME [SAMPLES [SOURCE]]

HOME is a built dataset; of each source the first SAMPLES (2) samples that have regions are told, as facts and texts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from llmserver import model_server  # noqa: E402

from catalog import shards  # noqa: E402
from catalog.manifest import scan  # noqa: E402
from infra.errors import Terminal  # noqa: E402
from transforms.captioners import llm, template  # noqa: E402
from transforms.captioners.brief import brief_of  # noqa: E402
from transforms.facts import facts_of  # noqa: E402
from transforms.stage import Context, SampleRows  # noqa: E402

LAYERS = ("labels", "rois", "measures", "passages", "texts")


def samples(home: Path, each: int, source: str | None) -> Iterator[SampleRows]:
    """The first samples of each source that have a region, in order of sample_id."""
    rows: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for entry in scan(home):
        unit = entry.read(home)
        if source not in (None, unit.source):
            continue
        for layer in ("images", *LAYERS):
            for row in shards.read(home, unit.shards, layer).to_pylist():
                rows.setdefault(unit.source, {}).setdefault(row["sample_id"], {}).setdefault(layer, []).append(row)
    for _, found in sorted(rows.items()):
        told = [layers for _, layers in sorted(found.items()) if "images" in layers and "rois" in layers]
        for layers in told[:each]:
            yield SampleRows(layers["images"][0], {layer: layers.get(layer, []) for layer in LAYERS})


def main(home: Path, each: int = 2, source: str | None = None) -> None:
    """Print the facts, the template's texts and the model's; count texts, rejects, tokens and seconds."""
    refused, written, tokens, began = 0, 0, 0, time.perf_counter()
    with model_server() as base_url, tempfile.TemporaryDirectory() as scratch:
        params = llm.Params(base_url=base_url, model="smollm2", max_regions=2, max_relations=1, max_tokens=500)
        captioner = llm.open_captioner(params, Context(Path(scratch)))
        fixed = template.open_captioner(template.Params(), Context(Path(scratch)))
        with closing(captioner):
            for sample in samples(home, each, source):
                facts = facts_of(sample)
                print(f"\n=== {sample.image['source']} {sample.id}\n{brief_of(facts, 2, 1).request}")
                for row in fixed(facts, sample):
                    print(f"  template {row['kind']}: {row['text']}")
                try:
                    rows = captioner(facts, sample)
                except Terminal as error:
                    refused += 1
                    print(f"  llm rejected: {error.code} {str(error)[:300]}")
                    continue
                for row in map(dict, rows):
                    written += 1
                    tokens += row.get("tokens_out") or 0
                    print(f"  llm {row['kind']}: {row['text']}")
    print(f"\n{written} texts, {refused} samples rejected, {tokens} tokens out, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
