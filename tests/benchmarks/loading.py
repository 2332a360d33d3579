"""Indexing, decoding and slicing of scans, beside pydicom, SimpleITK and nibabel (MONAI and TorchIO where installed).

    python tests/benchmarks/loading.py [--slices 60] [--rounds 5] [FOLDER …]

Without FOLDER, a CT series of 512 x 512 slices and the same scan as .nii.gz are made. A FOLDER is one of DICOM files of
one series, or holds NIfTI files. All run in one process and in turns, with one thread; files are in the page cache. The
times are medians, the ratio is a peer's time over ours: above 1, we are faster. Before a time is printed, each peer's
voxels are compared with ours, on one orientation; what differs is said. Slicing is: the whole file to 8-bit axial
pictures in one window, as radiologists hang them.

The tasks are what each tool is asked for in practice, not the same work: our index also hashes every file and reads the
header elements that tell sub-series apart; our decoding also checks geometry, and de-identifies what it says.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ctfiles import ct_dataset

from connectors import dicom as dicom_connector
from connectors import nifti as nifti_connector
from infra.fileindex import FileIndex
from transforms.decoded import IngestParams
from transforms.decoders import dicom, nifti
from transforms.scans.volumes import canonical, cut

Array = npt.NDArray[Any]
Work = Callable[[], Any]
WINDOW = (-160.0, 240.0)
SLICING = IngestParams(slices="all", windows=("soft_tissue",))


def make_series(folder: Path, slices: int) -> list[Path]:
    """A CT series of one patient, named so that the names tell no order."""
    folder.mkdir(parents=True)
    for number in range(slices):
        made = ct_dataset(number, 512)
        made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = "1.2.840.1", "1.2.840.1.1", "one"
        made.FrameOfReferenceUID, made.InstanceNumber = "1.2.840.1.2", number + 1
        made.ImagePositionPatient, made.ImageOrientationPatient = [-100, -100, 2.5 * number], [1, 0, 0, 0, 1, 0]
        made.save_as(folder / f"{number * 7919 % slices:05}-{number}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


def dicom_work(files: Sequence[Path]) -> dict[str, dict[str, Work]]:
    """task -> tool -> the work."""
    import pydicom
    import SimpleITK as sitk

    folder = files[0].parent
    params = dicom_connector.Params(root=str(folder))
    order = _itk_order(folder)

    def warm() -> Work:
        index = FileIndex(None)
        list(dicom_connector.list_partitions("s", params, index))
        return lambda: list(dicom_connector.list_partitions("s", params, index))

    def headers() -> dict[str, list[tuple[float, Path]]]:
        found: dict[str, list[tuple[float, Path]]] = {}
        for path in files:
            read = pydicom.dcmread(path, stop_before_pixels=True)
            found.setdefault(read.SeriesInstanceUID, []).append((float(read.ImagePositionPatient[2]), path))
        return {uid: sorted(paths) for uid, paths in found.items()}

    def ours() -> Any:
        return dicom.open_scan([path.read_bytes() for path in order])

    def theirs() -> Array:
        read = sorted((pydicom.dcmread(path) for path in files), key=lambda one: float(one.ImagePositionPatient[2]))
        return np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in read])

    def itk() -> Any:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in order])
        return reader.Execute()

    return {
        "DICOM index, first": {
            "medloom": lambda: list(dicom_connector.list_partitions("s", params, FileIndex(None))),
            "pydicom": headers, "SimpleITK": lambda: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)),
        },
        "DICOM index, again": {
            "medloom": warm(), "pydicom": headers,
            "SimpleITK": lambda: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)),
        },
        "DICOM decode": {"medloom": ours, "pydicom": theirs, "SimpleITK": itk},
        "DICOM decode and slice": {
            "medloom": lambda: [piece.pixels for piece in cut(_ct(ours()), SLICING)],
            "pydicom": lambda: [_windowed(face) for face in theirs()],
            "SimpleITK": lambda: _itk_slices(itk()),
        },
    }


def nifti_work(path: Path) -> dict[str, dict[str, Work]]:
    """task -> tool -> the work."""
    import nibabel as nib
    import SimpleITK as sitk

    params = nifti_connector.Params(root=str(path.parent), include=(path.name,), modality="CT")

    def ours() -> Any:
        return nifti.open_scan([path.read_bytes()])

    def theirs() -> Array:
        return np.asarray(nib.load(path).dataobj)

    def nibabel_slices() -> list[Array]:
        upright = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)[::-1, ::-1]
        return [_windowed(upright[..., at].T) for at in range(upright.shape[2])]

    decode: dict[str, Work] = {
        "medloom": ours, "nibabel": theirs, "SimpleITK": lambda: sitk.ReadImage(str(path)),
    }
    if find_spec("monai"):
        from monai.transforms import LoadImage
        decode["MONAI"] = lambda: np.asarray(LoadImage(image_only=True)(path))
    if find_spec("torchio"):
        import torchio
        decode["TorchIO"] = lambda: torchio.ScalarImage(path).numpy()[0]
    return {
        "NIfTI index, first": {
            "medloom": lambda: list(nifti_connector.list_partitions("s", params, FileIndex(None))),
            "nibabel": lambda: nib.load(path).shape,
        },
        "NIfTI decode": decode,
        "NIfTI decode and slice": {
            "medloom": lambda: [piece.pixels for piece in cut(_ct(ours()), SLICING)], "nibabel": nibabel_slices,
            "SimpleITK": lambda: _itk_slices(sitk.ReadImage(str(path))),
        },
    }


def _ct(scan: Any) -> Any:
    from dataclasses import replace

    return replace(scan, modality="CT")


def _itk_order(folder: Path) -> list[Path]:
    import SimpleITK as sitk

    return [Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))]


def _windowed(values: Array) -> Array:
    lower, upper = WINDOW
    return ((np.clip(values, lower, upper) - lower) / (upper - lower) * 255 + 0.5).astype(np.uint8)


def _itk_slices(image: Any) -> list[Array]:
    import SimpleITK as sitk

    upright = sitk.DICOMOrient(image, "LPS")
    grey = sitk.Cast(sitk.IntensityWindowing(upright, *WINDOW, 0.0, 255.0), sitk.sitkUInt8)
    return list(sitk.GetArrayFromImage(grey))


def differences(task: str, results: dict[str, Any]) -> dict[str, float | None]:
    """tool -> greatest difference from ours (HU or grey levels); None where there is nothing to compare."""
    if "index" in task:
        return dict.fromkeys(results)
    ours = _stacked(results["medloom"])
    found: dict[str, float | None] = {}
    for tool, result in results.items():
        theirs = _stacked(result)
        fits = theirs if theirs.shape == ours.shape else theirs.transpose(2, 1, 0)
        found[tool] = float(np.abs(fits.astype(np.float64) - ours).max()) if fits.shape == ours.shape else np.inf
    return found


def _stacked(result: Any) -> Array:
    """(z, y, x) of what a tool gave: a list of slices, a scan, an image, an array."""
    import SimpleITK as sitk

    if isinstance(result, sitk.Image):
        return sitk.GetArrayFromImage(result)
    if hasattr(result, "affine") and hasattr(result, "values"):
        return np.asarray(result.values).transpose(2, 1, 0)
    return np.stack(result) if isinstance(result, list) else np.asarray(result)


def measure(work: dict[str, dict[str, Work]], rounds: int) -> None:
    """One line a task and tool."""
    for task, tools in work.items():
        differ = differences(task, {tool: run() for tool, run in tools.items()})
        times: dict[str, list[float]] = {tool: [] for tool in tools}
        for turn in range(rounds):
            names = list(tools)
            for tool in names[turn % len(names) :] + names[: turn % len(names)]:
                began = time.perf_counter()
                tools[tool]()
                times[tool].append(time.perf_counter() - began)
        middle = {tool: statistics.median(taken) for tool, taken in times.items()}
        for tool, median in middle.items():
            gap = differ[tool]
            same = "" if gap is None or tool == "medloom" else "same" if gap == 0 else f"differs by {gap:g}"
            ratio = median / middle["medloom"]
            print(f"{task:<24} {tool:<10} {1000 * median:>9.1f} ms {ratio:>7.2f}  {same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of SimpleITK")
    args = parser.parse_args()
    import nibabel as nib
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(args.threads)
    for missing in (name for name in ("monai", "torchio") if not find_spec(name)):
        print(f"{missing} is not installed: left out")
    with tempfile.TemporaryDirectory() as scratch:
        folders = args.folders
        if not folders:
            files = make_series(Path(scratch) / "series", args.slices)
            scan = dicom.open_scan([path.read_bytes() for path in _itk_order(files[0].parent)])
            (Path(scratch) / "nifti").mkdir()
            image = nib.Nifti1Image(canonical(scan).values.astype(np.int16), canonical(scan).affine)
            nib.save(image, Path(scratch) / "nifti" / "ct.nii.gz")
            folders = [files[0].parent, Path(scratch) / "nifti"]
        for folder in folders:
            niftis = sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")))
            print(f"{folder.name}: {len(niftis) or len(list(folder.iterdir()))} files")
            work = [nifti_work(path) for path in niftis] or [dicom_work(sorted(folder.iterdir()))]
            for one in work:
                measure(one, args.rounds)


if __name__ == "__main__":
    main()
