"""De-identification against dicognito and dicom-anonymizer: the same planted files through each, twice.

    python tests/benchmarks/deidentify.py [--files 198] [--peers PYTHON]

leaks        files in which a planted marker is found anywhere in the bytes
lost         values of KEPT (geometry, window, KVP …) that changed or went, pixels included, over all files
disagree     files whose UIDs, patient, accession number or study date differ between two processes
untold       files that do not say PatientIdentityRemoved
failed       files that were not written
files/s      reading and writing included, start of the process not; the better of both runs

`--peers` is the Python of an environment that has dicognito 0.19.0 and dicom-anonymizer 2.1.0; what it lacks is
skipped with a word. Sequences and markers are those of tests/planted.py, of which a tenth stays clean pydicom files.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = {"medloom": "", "dicognito": "dicognito", "dicom-anonymizer": "dicomanonymizer"}
AGREE = (
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "AccessionNumber",
    "StudyDate",
)


PARTS = 11
"""A file has markers in every eleventh row of the table, as many as real headers fill; all files have them in all."""


def work(tool: str, source: Path, out: Path) -> None:
    """Run in a process of its own: all files through one tool; prints seconds and the number of failures."""
    paths = sorted(source.iterdir())
    clean = {"medloom": _medloom, "dicognito": _dicognito, "dicom-anonymizer": _dicom_anonymizer}[tool]()
    clean(paths[0], out / paths[0].name)  # warm
    failed = 0
    begin = time.perf_counter()
    for path in paths:
        try:
            clean(path, out / path.name)
        except Exception:  # noqa: BLE001
            failed += 1
    print(json.dumps({"seconds": time.perf_counter() - begin, "failed": failed}))


def _medloom() -> Any:
    sys.path.insert(0, str(ROOT))
    from transforms.deid.engine import deidentify_file
    from transforms.deid.profile import Profile

    profile = Profile.of("modified_dates")
    return lambda path, out: deidentify_file(path.read_bytes(), profile, b"benchmark").write(out)


def _dicognito() -> Any:
    import pydicom
    from dicognito.anonymizer import Anonymizer  # type: ignore[import-not-found]

    anonymizer = Anonymizer(seed="benchmark")

    def clean(path: Path, out: Path) -> None:
        dataset = pydicom.dcmread(path)
        anonymizer.anonymize(dataset)
        dataset.save_as(out)

    return clean


def _dicom_anonymizer() -> Any:
    from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file  # type: ignore[import-not-found]

    return lambda path, out: anonymize_dicom_file(str(path), str(out), None, True)


def judge(source: Path, outs: list[Path]) -> dict[str, int]:
    """Compare what came out with what went in."""
    from planted import KEPT, leaks
    from pydicom import dcmread

    found = {"leaks": 0, "lost": 0, "disagree": 0, "untold": 0}
    for path in sorted(source.iterdir()):
        if not (outs[0] / path.name).exists():
            continue
        written = (outs[0] / path.name).read_bytes()
        before, after = dcmread(path), dcmread(io.BytesIO(written))
        again = dcmread(outs[1] / path.name) if (outs[1] / path.name).exists() else None
        found["leaks"] += bool(leaks(written))
        found["lost"] += sum(_differs(before, after, name) for name in KEPT if name in before)
        found["disagree"] += again is None or any(after.get(name) != again.get(name) for name in AGREE)
        found["untold"] += after.get("PatientIdentityRemoved") != "YES"
    return found


def _differs(before: Any, after: Any, name: str) -> bool:
    if name != "PixelData":
        return bool(before[name].value != after.get(name))
    if name not in after:
        return True
    import numpy as np

    return before.PixelData != after.PixelData and not np.array_equal(before.pixel_array, after.pixel_array)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--files", type=int, default=198)
    options.add_argument("--peers", default=sys.executable)
    options.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.work:
        work(given.work[0], Path(given.work[1]), Path(given.work[2]))
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from planted import BASES, planted
    from pydicom.data import get_testdata_file

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        for n in range(given.files):
            clean = get_testdata_file(BASES[n // 10 % len(BASES)])
            (source / f"{n:05}.dcm").write_bytes(planted(n, parts=PARTS) if n % 10 else Path(clean).read_bytes())
        row = "{:<18}" + "{:>10}" * 6
        print(row.format("tool", "leaks", "lost", "disagree", "untold", "failed", "files/s"))
        for tool, module in TOOLS.items():
            python = given.peers if module else sys.executable
            if module and subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
                print(f"{tool:<18}skipped: not installed for {python}")
                continue
            outs, runs = [], []
            for turn in "ab":
                outs.append(Path(folder) / f"{tool}-{turn}")
                outs[-1].mkdir()
                command = [python, "-W", "ignore", __file__, "--work", tool, str(source), str(outs[-1])]
                said = subprocess.run(command, capture_output=True, check=True).stdout
                runs.append(json.loads(said.splitlines()[-1]))
            found = judge(source, outs)
            speed = given.files / min(run["seconds"] for run in runs)
            print(row.format(tool, *found.values(), runs[0]["failed"], f"{speed:.0f}"))


if __name__ == "__main__":
    main()
