"""Fuzz one target for a fixed number of inputs: python tests/fuzz/run.py dicom --runs 2000 --seed 1

With atheris the branches that an input reaches decide which inputs are changed further; without it (or --plain) seeds
are changed at random. Both are the same for the same seed. Each new kind of find is written to --keep and the run goes
on; the exit status is 1 if there were any, and that of libFuzzer where an input took too long or too much memory.
A find that was mended belongs into tests/fuzz/cases/TARGET/, under a name that says what it was.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 10
SECONDS_OF_A_CHILD = 5
"""A child of `transforms/scans/guarded.py` that hangs is to end before the fuzzer's own limit for an input."""
MEGABYTES = 2048
"""An input may take so much more than the process had before: the kernel hands a parent's peak on to its children."""
MOST_BYTES = 1 << 16
SHARE_OF_SEEDS = 0.4
"""How often a guided run begins again with a whole file: what reaches a rare branch is mostly broken early."""

_DICOM = (
    "transforms.decoders.dicom", "transforms.scans", "pydicom.filereader", "pydicom.values", "pydicom.encaps",
    "pydicom.pixels", "pydicom.dataelem", "pydicom.sequence", "pydicom.valuerep",
)
_VOLUME = ("transforms.decoders.nifti", "transforms.scans", "nibabel.nifti1", "nibabel.wrapstruct")
_PICTURE = ("transforms.decoders.image", "transforms.pictures", "transforms.regions", "PIL")
WATCHED = {
    "dicom": _DICOM, "series": _DICOM, "nifti": _VOLUME, "labels": _VOLUME, "image": _PICTURE, "mask": _PICTURE,
    "archive": ("connectors.archives", "tarfile", "zipfile"), "jats": ("connectors.pmc", "transforms.decoders.figure"),
}
"""Target -> modules and packages whose branches guide the fuzzer."""



def _peak() -> int:
    """Most memory that the process had, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


BEFORE = _peak()

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=WATCHED)
    parser.add_argument("--runs", type=int, default=2000, help="inputs, the seeds among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for finds (default: a new one)")
    parser.add_argument("--plain", action="store_true", help="without atheris, though it is there")
    asked = parser.parse_args()
    keep = asked.keep or Path(tempfile.mkdtemp(prefix=f"fuzz-{asked.target}-"))
    keep.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable()
    if asked.plain or importlib.util.find_spec("atheris") is None:
        _plain(asked.target, asked.runs, asked.seed, keep)
    else:
        _guided(asked.target, asked.runs, asked.seed, keep)


class _Counted:
    """The target, its finds kept instead of raised, until the number of inputs is reached."""

    def __init__(self, check, runs: int, keep: Path) -> None:  # type: ignore[no-untyped-def]
        self._check, self._runs, self._keep = check, runs, keep
        self._count, self._read, self._began = 0, 0, time.monotonic()
        self._finds: set[str] = set()

    def __call__(self, data: bytes) -> None:
        self._count += 1
        try:
            self._read += self._check(data)
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            self._find(error, data)
        if self._count >= self._runs:
            taken = time.monotonic() - self._began
            done = f"{self._count} inputs in {taken:.1f} s, {self._read} of them read"
            print(f"{done}, {len(self._finds)} finds in {self._keep}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1 if self._finds else 0)  # libFuzzer never gives control back

    def _find(self, error: Exception, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if f.filename.startswith(str(ROOT)) and ".venv" not in f.filename]
        last = (ours or frames)[-1]
        name = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
        if name not in self._finds:
            self._finds.add(name)
            (self._keep / name).write_bytes(data)
            print(f"FIND {name} after {self._count} inputs", file=sys.stderr)
            traceback.print_exception(error)


def _target(name: str) -> Any:
    from fuzz.targets import TARGETS

    from transforms.scans import guarded

    guarded.SECONDS = SECONDS_OF_A_CHILD
    return TARGETS[name]


def _plain(name: str, runs: int, seed: int, keep: Path) -> None:
    from fuzz.mutate import changed

    target, rng = _target(name), Random(seed)
    seeds = list(target.seeds().values())
    counted = _Counted(target.check, runs, keep)
    for n in range(runs):
        data = seeds[n] if n < min(len(seeds), runs // 2) else changed(rng.choice(seeds), rng, MOST_BYTES)
        (keep / "last").write_bytes(data)  # what is there if the process ends
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        if _peak() > BEFORE + (MEGABYTES << 10):
            sys.exit(f"more than {MEGABYTES} MB after {n} inputs")
        if n == runs - 1:
            (keep / "last").unlink()
        counted(data)


def _guided(name: str, runs: int, seed: int, keep: Path) -> None:
    import atheris
    from fuzz.mutate import changed

    with atheris.instrument_imports(include=list(WATCHED[name])):
        target = _target(name)
    corpus = keep / "seeds"
    corpus.mkdir(exist_ok=True)
    for file, data in target.seeds().items():
        (corpus / file).write_bytes(data)

    seeds = [*target.seeds().values()]

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = Random(number)
        which = rng.random()
        if which < 0.1:
            return atheris.Mutate(data, most)  # type: ignore[no-any-return]
        return changed(rng.choice(seeds) if which < SHARE_OF_SEEDS else data, rng, most)

    most = MEGABYTES + BEFORE // 1024
    atheris.Setup(
        [sys.argv[0], f"-seed={seed}", f"-runs={runs}", f"-timeout={SECONDS}", f"-rss_limit_mb={most}",
         f"-max_len={MOST_BYTES}", f"-artifact_prefix={keep}/", "-print_final_stats=0", "-verbosity=0", str(corpus)],
        _Counted(target.check, runs, keep), custom_mutator=change, internal_libfuzzer=True,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[0:1] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit")]
    main()
