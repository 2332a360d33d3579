"""Every scan of the sample data is in the funnel, kept or with a reason; other sets are tested by their connectors."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_build import run

from catalog.catalog import query
from connectors import dicom, nifti
from infra.fileindex import FileIndex

DESCRIBED = (".json", ".tsv")
"""What says something of other files is read and is no item."""
FOLDERS = {
    "totalseg_ct_msd": "layout: msd", "totalseg_mr_msd": "layout: msd", "bids_like": "layout: bids",
    "mni_icbm152": "modality: MR", "nibabel_samples": "modality: MR",
    "totalseg_pulmonary_masks": "modality: CT",
}


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_every_scan_is_kept_or_has_a_reason(kind: str, sample_data: Path, tmp_path: Path) -> None:
    root = sample_data / kind
    if kind == "dicom":
        sources = [f"{{name: all, use: dicom, root: {root}, identifiers: public}}"]
        parts = list(dicom.list_partitions("all", dicom.Params(root=str(root)), FileIndex(None)))
        items = {item for part in parts for item, _ in part.contents}
        lost = {name for name in files(root) if not any(item.startswith(name) for item in items)}
    else:
        assert {path.name for path in root.iterdir() if path.is_dir()} == set(FOLDERS)
        sources = [
            f"{{name: {folder}, use: nifti, root: {root / folder}, identifiers: public, {how}}}"
            for folder, how in FOLDERS.items()
        ]
        lost = set()
        for folder, how in FOLDERS.items():
            params = nifti.Params.model_validate({"root": str(root / folder), **dict([how.split(": ")])})
            listed = str([part.refs for part in nifti.list_partitions("s", params, FileIndex(None))])
            lost |= {n for n in files(root / folder) if n not in listed and not n.endswith(DESCRIBED)}
    assert not lost
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: all\nchecks: {max_failed: 1.0}\nsources:\n" + "".join(f"  - {s}\n" for s in sources))
    run(recipe, tmp_path / "home")
    rows = query(tmp_path / "home", "SELECT rows_in, kept, dropped, failed, quarantined FROM funnel").to_pylist()
    assert sum(row["kept"] for row in rows) > 10
    for row in rows:
        assert row["rows_in"] == row["kept"] + row["dropped"] + row["failed"] and not row["quarantined"]
    unsaid = query(tmp_path / "home", "SELECT count(*) AS n FROM rejects WHERE length(message) < 10").to_pylist()
    assert unsaid == [{"n": 0}]
