"""What grounding with `experts: auto` finds in the sample data: a table by source, modality and expert.

    python tests/benchmarks/grounding_table.py                  every set
    python tests/benchmarks/grounding_table.py --look OUT.png   and a sheet of pictures with regions, to be looked at

It takes all sets of pictures and scans: of a scan the middle slice and the largest of every structure, of pictures a
copy of at most 512 pixels a side; minutes on a free machine, of which radiographs take most. It runs ingest,
image_type, ground_volumes and ground over MEDLOOM_DATA (default ../shared/data), with the weights that lie there, put
into a folder that is removed afterwards (--bare: without any). With --keep, what stands already is not run again, and
its seconds are not told. Every sample with a picture has regions or a reason; the last line counts those that have
neither, and the exit status says whether there are any.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from PIL import Image

from catalog import review_sheet, sheet
from catalog.catalog import query, reader
from flows import build as work
from flows.recipe import load_recipe
from infra import weights
from infra.runner import InlineRunner
from transforms import ground, ground_volumes

DATA = Path(os.environ.get("MEDLOOM_DATA", Path(__file__).parents[3] / "shared" / "data"))
SOURCES = """
  - {name: dicom, use: dicom, root: DATA/dicom, exclude: ["*.nii.gz", "*.nii", "*.json", "*.bval", "*.bvec"]}
  - {name: ct_msd, use: nifti, layout: msd, root: DATA/nifti/totalseg_ct_msd, anatomy: abdomen}
  - {name: ct_chest, use: nifti, root: DATA/nifti/totalseg_pulmonary_masks, include: ["ct*"], modality: CT,
     anatomy: chest}
  - {name: mr_msd, use: nifti, layout: msd, root: DATA/nifti/totalseg_mr_msd, anatomy: abdomen}
  - {name: mr_bids, use: nifti, layout: bids, root: DATA/nifti/bids_like}
  - {name: mr_nibabel, use: nifti, root: DATA/nifti/nibabel_samples, modality: MR}
  - {name: mni_brain, use: nifti, root: DATA/nifti/mni_icbm152, include: ["mni_icbm152_t1_*"], modality: MR,
     anatomy: brain}
  - {name: nih_xrays, use: images, layout: imagefolder, root: DATA/classification/nih_cxr64/NIH1000,
     splits: [train, valid, test], modality: CR, anatomy: chest}
  - {name: covid, use: images, layout: csv, root: DATA/classification/covid_cxr_nc, csv: metadata.csv,
     include: ["images/*"], image_column: filename, fact_columns: {view: view, modality: modality},
     fact_map: {X-ray: CR}, anatomy: chest}
  - {name: blood_voc, use: images, layout: voc, root: DATA/detection/bccd_voc/BCCD, modality: GM, anatomy: blood}
  - {name: blood_coco, use: images, layout: coco, root: DATA/detection/bccd_coco, modality: blood smear}
  - {name: nuclei, use: images, layout: pairs, root: DATA/segmentation/dsb2018/stage1_train, mask_label: nucleus,
     modality: GM}
  - {name: articles, use: pmc, root: DATA/pmc}
  - {name: figures, use: images, layout: table, root: DATA/captions/medicat_nc, table: sample.jsonl,
     image_column: "{pdf_hash}_{fig_uri}"}
"""
RECIPE = """
name: grounding
ingest: {max_side: 512, slices: 'each:1+middle'}
checks: {max_failed: 1.0}
sources:SOURCES
stages:
  - {use: image_type}
  - {use: ground_volumes, experts: auto}
  - {use: ground, experts: auto}
"""
LACKING = """
SELECT count(*) AS n FROM images i WHERE
  NOT EXISTS (SELECT 1 FROM rois r WHERE r.sample_id = i.sample_id)
  AND NOT EXISTS (SELECT 1 FROM checks c WHERE c.sample_id = i.sample_id
    AND c."check" IN ('roi_status', 'volume_status') AND length(c.detail) > 5)
"""
TABLE = """
SELECT source, coalesce(modality, 'unknown') AS modality, count(*) AS samples,
  count(*) FILTER (r.given > 0) AS given, count(*) FILTER (r.found > 0) AS found,
  count(*) FILTER (r.given IS NULL) AS "reason only"
FROM images LEFT JOIN (SELECT sample_id, count(*) FILTER (origin <> 'predicted') AS given,
  count(*) FILTER (origin = 'predicted') AS found FROM rois GROUP BY 1) r USING (sample_id)
GROUP BY 1, 2 ORDER BY 1, 2"""
REASONS = """
SELECT "check", regexp_replace(detail, '[0-9]+', 'N', 'g') AS reason, count(*) AS samples FROM checks
WHERE "check" IN ('roi_status', 'volume_status', 'roi_routing', 'volume_routing') GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2"""
VERDICTS = """
SELECT "check", count(*) FILTER (verdict = 'pass') AS pass, count(*) FILTER (verdict = 'fail') AS fail,
  count(*) FILTER (verdict = 'unknown') AS unknown, round(avg(value), 3) AS mean, any_value(detail) FILTER
  (verdict = 'fail') AS example
FROM checks WHERE "check" LIKE '%plausible/%' OR "check" LIKE '%agreement/%' GROUP BY 1 ORDER BY 1"""
PICTURES = """
SELECT sample_id, source, modality, width, height, shard FROM images SEMI JOIN
  (SELECT sample_id FROM rois WHERE origin = 'predicted' AND role <> 'panel') USING (sample_id)
QUALIFY row_number() OVER (PARTITION BY source, modality ORDER BY sample_id) <= 2 ORDER BY source, sample_id LIMIT 20"""
Told = dict[tuple[str, str, str], list[Any]]
"""(source, modality, expert) -> seconds, what became of each picture"""


def timed(call: Callable[..., Any], told: Told) -> Callable[..., Any]:
    """`ground.regions_found`, with what it says and how long it takes written down."""
    def found(expert: Any, sample: Any, image: Any = None) -> Any:
        start = time.perf_counter()
        rows, problem = call(expert, sample, image)
        row = told[sample.image["source"], sample.image["modality"] or "unknown", expert.name]
        row[0] += time.perf_counter() - start
        row[1][problem or ("found" if rows else "found nothing")] += 1
        return rows, problem
    return found


def timed_scans(call: Callable[..., Any], told: Told) -> Callable[..., Any]:
    """`ground_volumes._looked`, likewise; it counts scans."""
    def looked(expert: Any, scan: Any) -> Any:
        start = time.perf_counter()
        found = call(expert, scan)
        row = told["scans", getattr(scan, "modality", None) or "unknown", expert.name]
        row[0] += time.perf_counter() - start
        row[1][found.said] += 1
        return found
    return looked


def grounded(home: Path, recipe: Path) -> Told:
    """Build the recipe in one process; who was asked, what was found, and seconds."""
    told: Told = defaultdict(lambda: [0.0, Counter()])
    ground.regions_found = timed(ground.regions_found, told)
    ground_volumes._looked = timed_scans(ground_volumes._looked, told)
    steps = load_recipe(recipe, ())
    plan = work.prepare(steps, home, False)
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        for group in work.groups(plan):
            work.run_chains(group, steps, home, runner, progress)
    work.commit(plan, progress, steps, home)
    return told


def shown(rows: list[dict[str, Any]]) -> None:
    """Rows as a table of text."""
    lines = [list(rows[0])] if rows else []
    lines += [[str(value) for value in row.values()] for row in rows]
    widths = [min(150, max(len(line[n]) for line in lines)) for n in range(len(lines[0]))] if lines else []
    for line in lines:
        print("  ".join(cell[:150].ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()


def sheet_of(home: Path, out: Path, side: int = 300, columns: int = 5) -> None:
    """A PNG of pictures with their regions."""
    import io

    with reader(home) as con:
        cards = sheet.cards_of(con, home, con.execute(PICTURES).to_arrow_table().to_pylist())
    page = Image.new("RGB", (columns * side, -(-len(cards) // columns) * side))
    for n, card in enumerate(cards):
        picture = Image.open(io.BytesIO(card.png)).convert("RGB")
        picture.thumbnail((side, side))
        page.paste(picture, (n % columns * side, n // columns * side))
        labels = sorted({region.label for region in card.regions})
        print(n, card.source, card.modality, card.sample_id[:10], len(card.regions), ", ".join(labels[:6]))
    page.save(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bare", action="store_true", help="no weights at all")
    parser.add_argument("--look", type=Path, help="write pictures with regions to this PNG")
    parser.add_argument("--keep", type=Path, help="build here, and leave it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = chosen.keep or Path(folder) / "home"
        os.environ["MEDLOOM_WEIGHTS"] = str(Path(folder) / "weights")
        for name in () if chosen.bare else ("lwnet-vessels", "meshnet-tissue"):
            weights.fetch(name, DATA / "weights")
        recipe = Path(folder) / "recipe.yaml"
        sources = SOURCES.replace("DATA/", f"{DATA}/").replace("}\n", ", identifiers: public}\n")
        recipe.write_text(RECIPE.replace("SOURCES", sources))
        start = time.perf_counter()
        told = grounded(home, recipe)
        print(f"{time.perf_counter() - start:.0f} s in all\n")
        shown(query(home, TABLE).to_pylist())
        shown([
            {"source": source, "modality": modality, "expert": expert, "asked": sum(row[1].values()),
             "seconds": f"{row[0]:.1f}", "what became of it": "; ".join(f"{n} {said}" for said, n in row[1].items())}
            for (source, modality, expert), row in sorted(told.items())
        ])
        shown(query(home, VERDICTS).to_pylist())
        shown(query(home, REASONS).to_pylist())
        (lacking,) = query(home, LACKING).to_pylist()
        if chosen.look:
            sheet_of(home, chosen.look)
        if chosen.keep:
            with reader(home) as con:
                print(review_sheet.markdown(review_sheet.reviews(con, home, 1))[:400])
        print(f"{lacking['n']} samples have neither regions nor a reason")
    return int(lacking["n"] > 0)


if __name__ == "__main__":
    sys.exit(main())
