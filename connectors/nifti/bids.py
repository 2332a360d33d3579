"""BIDS: sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz, with facts in JSON side-cars and masks among the derivatives.

The invariant: of a side-car, only the facts of ACQUISITION pass, and only as numbers or single words. Side-cars are
inherited from outer folders, inner ones win. A mask (_mask, _dseg) belongs to the one image of its subject, session and
datatype whose entities it repeats, or that its side-car's Sources name; in another space, it belongs to none.
https://bids-specification.readthedocs.io

>>> [one.name for one in find_bids(root, names, files, derivatives=True)]
['sub-01/anat/sub-01_T1w.nii.gz', …]
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from connectors.nifti.found import SUFFIX, Found, modality
from connectors.nifti.labels import read_labels
from infra.errors import ConfigError

MASKS = ("mask", "dseg")
"""Suffixes of binary masks and of label maps; probabilities (probseg) are neither."""
OF_A_MASK = ("space", "res", "den", "label", "desc", "seg", "hemi")
"""Entities that a mask has and its image need not."""
OWN_SPACES = ("orig", "scanner", "individual")
DATATYPES = {"pet": "PT", "ct": "CT", **dict.fromkeys(("anat", "func", "dwi", "fmap", "perf"), "MR")}
"""Folder of the datatype -> modality."""
ACQUISITION = (
    "MagneticFieldStrength", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "SliceThickness",
    "Manufacturer", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "ContrastBolusIngredient",
    "PhaseEncodingDirection", "ConvolutionKernel", "KVP",
)
"""Facts of a side-car that speak of the machine and nobody else."""


@dataclass(frozen=True)
class Name:
    """A BIDS file name, taken apart."""

    path: str
    subject: str
    folder: str
    """sub-01/ses-2/anat, also for derivatives"""
    entities: Mapping[str, str]
    suffix: str
    derived: bool


def find_bids(root: Path, names: Sequence[str], files: Sequence[str], derivatives: bool) -> list[Found]:
    """Images with their masks, and why the other files are none. `files`: all files below the root, volumes or not."""
    parsed = [(name, _parse(name)) for name in names]
    images = [one for _, one in parsed if one and not one.derived and one.suffix not in (*MASKS, "probseg")]
    if not images:
        raise ConfigError("there is no sub-LABEL/…/sub-LABEL_SUFFIX.nii.gz; check root, or take layout: folder")
    beside = _Beside(root, files)
    found = {one.path: _image(one, beside) for one in images}
    rest: list[Found] = []
    for name, one in parsed:
        if name in found:
            continue
        why, owner = _owner(one, images, beside, derivatives)
        if owner and one:
            role = "labels" if one.suffix == "dseg" else f"mask:{_mask_name(one)}"
            if role not in found[owner].files:
                found[owner] = _with_mask(found[owner], role, one, beside)
                continue
            why = ("MASK_AMBIGUOUS", f"{owner} has a {role} already")
        rest.append(Found(name, {"main": name}, error=why))
    return [*found.values(), *rest]


class _Beside:
    """The JSON and TSV files that speak of images, by the principle of inheritance."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._root = root
        self._known = [(name, one) for name in files if name.endswith((".json", ".tsv")) and (one := _parse(name))]
        self._json = cache(self._load)

    def paths(self, image: Name, ending: str) -> list[str]:
        """Files that speak of an image, outer folders first."""
        folder = posixpath.dirname(image.path)
        fit = [
            name for name, one in self._known
            if name.endswith(ending) and one.suffix == image.suffix and one.entities.items() <= image.entities.items()
            and (posixpath.dirname(name) == "" or f"{folder}/".startswith(f"{posixpath.dirname(name)}/"))
        ]
        return sorted(fit, key=lambda name: (name.count("/"), len(name)))

    def facts(self, image: Name) -> dict[str, Any]:
        """What the side-cars say. Raises ValueError for one that is not a JSON object."""
        return {key: value for path in self.paths(image, ".json") for key, value in self._json(path).items()}

    def table(self, image: Name) -> dict[str, str]:
        """Label value -> name. Raises ConfigError, OSError."""
        return {value: name for path in self.paths(image, ".tsv") for value, name in
                read_labels(self._root / path).get("label_table", {}).items()}

    def _load(self, path: str) -> dict[str, Any]:
        stated = json.loads((self._root / path).read_text("utf-8"))
        if not isinstance(stated, dict):
            raise ValueError("not an object")
        return stated


def _parse(path: str) -> Name | None:
    base = SUFFIX.sub("", posixpath.basename(path)).removesuffix(".json").removesuffix(".tsv")
    *words, suffix = base.split("_")
    pairs = [word.partition("-") for word in words]
    if not re.fullmatch(r"[A-Za-z0-9]+", suffix) or any(not (key and value) for key, _, value in pairs):
        return None
    entities = {key: value for key, _, value in pairs}
    volume = SUFFIX.search(path) is not None
    place = re.search(r"(?:^|/)(sub-[^/]+(?:/ses-[^/]+)?(?:/[^/]+)?)/[^/]+$", path)
    if volume and ("sub" not in entities or place is None or f"sub-{entities['sub']}" != place[1].split("/")[0]):
        return None
    derived = path.split("/")[0] in ("derivatives", "sourcedata")
    return Name(path, entities.get("sub", ""), place[1] if place else "", entities, suffix, derived)


def _image(one: Name, beside: _Beside) -> Found:
    stated = (("sequence", one.suffix, "bids:suffix"),)
    patient = f"sub-{one.subject}"
    try:
        said = beside.facts(one)
    except (OSError, ValueError, RecursionError) as error:
        broken = f"its JSON side-car cannot be read ({type(error).__name__}); repair or remove it"
        return Found(one.path, {"main": one.path}, {}, stated, patient, ("ENTRY_UNREADABLE", broken))
    datatype = posixpath.basename(one.folder)
    facts = {
        "modality": _modality(said) or ("CT" if one.suffix == "ct" else DATATYPES.get(datatype)),
        "anatomy": _word(said.get("BodyPartExamined") or said.get("BodyPart")),
        "acquisition": {key: value for key in ACQUISITION if (value := _plain(said.get(key))) is not None} or None,
    }
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return Found(one.path, {"main": one.path}, known, stated, patient)


def _modality(said: Mapping[str, Any]) -> str | None:
    return modality(said["Modality"]) if isinstance(said.get("Modality"), str) else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _word(value)


def _word(value: Any) -> str | None:
    """A value in lower case where it is one word or two, and no sentence."""
    fits = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+-]{1,30}( [A-Za-z0-9+-]{1,30})?", value.strip())
    return value.strip().lower() if fits else None


def _owner(
    one: Name | None, images: Sequence[Name], beside: _Beside, derivatives: bool
) -> tuple[tuple[str, str], str | None]:
    """The image a mask belongs to, or None and why there is none."""
    if one is None:
        return ("NOT_LISTED", "its name or folder is not one of BIDS (sub-LABEL/…/sub-LABEL_…_SUFFIX)"), None
    if one.derived and not derivatives:
        return ("NOT_LISTED", "it is derived; `derivatives: true` takes masks from there"), None
    if one.suffix not in MASKS:
        return ("NOT_LISTED", "it is derived, and neither a mask nor a label map"), None
    if one.entities.get("space", "orig") not in OWN_SPACES:
        return ("NOT_LISTED", "it lies in another space than the images of its subject"), None
    wanted = {key: value for key, value in one.entities.items() if key not in OF_A_MASK}
    fit = [image.path for image in images if image.folder == one.folder and wanted.items() <= image.entities.items()]
    if len(fit) > 1:
        fit = [path for path in fit if path in set(_sources(one, beside))] or fit
    if len(fit) == 1:
        return ("", ""), fit[0]
    what = "fits several images, and its side-car names none as its source" if fit else "fits no image"
    return ("MASK_AMBIGUOUS" if fit else "NOT_LISTED", f"it {what}"), None


def _sources(one: Name, beside: _Beside) -> Iterator[str]:
    try:
        said = beside.facts(one)
    except (OSError, ValueError, RecursionError):
        return
    for key in ("Sources", "RawSources"):
        listed = said.get(key, ())
        for source in [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else ():
            yield re.sub(r"^bids:[^:]*:", "", str(source))


def _mask_name(one: Name) -> str:
    return one.entities.get("label") or one.entities.get("desc") or "mask"


def _with_mask(image: Found, role: str, one: Name, beside: _Beside) -> Found:
    facts = dict(image.facts)
    if role == "labels":
        try:
            table = beside.table(one)
        except (ConfigError, OSError):
            table = {}  # its labels then go by their numbers
        facts |= {"label_table": table} if table else {}
    return replace(image, files={**image.files, role: one.path}, facts=facts)
