"""Croissant: the Hugging Face export with `croissant.json`, its description for machines, and responsible-AI fields.

Croissant 1.0 with RAI 1.0 (docs.mlcommons.org/croissant). One record set for each licence class; its fields are the
plain columns, the caption and the picture. The RAI fields say what the build did, by the recipe and the rows: sources
and stages, experts that marked regions, models that wrote texts, what is known to be wrong. What nobody told us (who
annotated, when, what the biases are) is not made up: those fields are absent.

>>> mlcroissant.Dataset(jsonld=out / "croissant.json").records("open")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.exports import Counts, huggingface
from catalog.licences import CLASSES
from catalog.schema import LAYERS
from catalog.selection import Row
from infra.storage import file_sha256, write_bytes

NAME = "croissant"
REQUIRES: dict[str, str] = {}
RESUMES = True
Params = huggingface.Params
MAKERS = ".makers.json"
_TYPES = {"string": "sc:Text", "int32": "sc:Integer", "double": "sc:Float", "float": "sc:Float", "bool": "sc:Boolean"}
_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty", "samplingRate": "cr:samplingRate",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}


def write(rows: Iterable[Row], out: Path, params: huggingface.Params) -> Counts:
    """Write what `huggingface` writes, and note who made regions and texts for `finish`."""
    return huggingface.write(_watched(rows, out / MAKERS), out, params)


def _watched(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """The rows; who made what is on record before a row is written, so an interruption forgets none of it."""
    said = json.loads(path.read_bytes()) if path.exists() else {}
    makers = {name: set(said.get(name, ())) for name in ("experts", "generators", "kinds", "modalities")}
    known = -1
    for row in rows:
        makers["experts"].update(roi["expert"] for roi in row.rois if roi["origin"] == "predicted")
        for text in row.texts:
            made = text["generator"].partition("/")[0] + (f" ({text['model']})" if text.get("model") else "")
            makers["generators"].add(made)
            makers["kinds"].add(text["kind"])
        makers["modalities"].add(row.image["modality"] or "unknown")
        if known != (known := sum(map(len, makers.values()))):
            write_bytes(path, json.dumps({name: sorted(found) for name, found in makers.items()}).encode())
        yield row


def finish(out: Path, record: Mapping[str, Any]) -> None:
    """Write croissant.json for the files that are there."""
    makers = json.loads((out / MAKERS).read_text(encoding="utf-8")) if (out / MAKERS).exists() else {}
    (out / MAKERS).unlink(missing_ok=True)
    classes = [kind for kind in CLASSES if (out / "data" / kind).is_dir()]
    described = {
        "@context": _CONTEXT, "@type": "sc:Dataset", "name": "medloom-export",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "description": f"{record['written']} medical images with regions and texts, exported by medloom from snapshot "
                       f"{record['snapshot']} by the condition: {record['where']}",
        "license": sorted(record["licences"]), "version": f"{record['snapshot']}.0.0",
        "datePublished": record["built_by"]["date"], "citeAs": "see ATTRIBUTIONS",
        **_responsible(record, makers),
        "distribution": [part for kind in classes for part in _files(out, kind)],
        "recordSet": [_records(kind) for kind in classes],
    }
    (out / "croissant.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _responsible(record: Mapping[str, Any], makers: Mapping[str, list[str]]) -> dict[str, Any]:
    built = record.get("built_by") or {}
    sources = ", ".join(f"{s['name']} (read by {s['use']})" for s in built.get("sources", ()))
    issues = [f"{i['issue']}: {i['rows']} rows of {i['samples']} samples" for i in record.get("known_issues", ())]
    refused = [f"{n} samples refused: {reason}" for reason, n in record.get("refused", {}).items()]
    left = [f"{n} samples left out: {reason}" for reason, n in record.get("left_out", {}).items()]
    said: dict[str, Any] = {
        "rai:dataCollection": f"Recipe {built.get('recipe')}: {sources}" if sources else None,
        "rai:dataPreprocessingProtocol": [f"stage {name}" for name in built.get("stages", ())] or None,
        "rai:dataAnnotationProtocol": [f"texts of kind {kind}" for kind in makers.get("kinds", ())] or None,
        "rai:machineAnnotationTools":
            [f"regions: {name}" for name in makers.get("experts", ())]
            + [f"texts: {name}" for name in makers.get("generators", ()) if name != "source"] or None,
        "rai:dataLimitations": issues + refused + left + ["Made texts may be wrong: for research, not for care."],
        "rai:dataUseCases": "Training and study of image-text and segmentation models; not for clinical decisions.",
        "rai:personalSensitiveInformation": [
            "Medical images. Headers are de-identified when they are read; modalities: "
            + ", ".join(makers.get("modalities", ["unknown"])),
        ],
    }
    return {name: value for name, value in said.items() if value}


def _files(out: Path, kind: str) -> Iterator[dict[str, Any]]:
    for path in sorted((out / "data" / kind).glob("*.parquet")):
        name = path.relative_to(out).as_posix()
        yield {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "sha256": file_sha256(path),
               "contentSize": f"{path.stat().st_size} B", "encodingFormat": "application/x-parquet"}
    # without containedIn: its files lie beside croissant.json
    yield {"@type": "cr:FileSet", "@id": f"files-{kind}", "name": f"files-{kind}",
           "encodingFormat": "application/x-parquet", "includes": f"data/{kind}/*.parquet"}


def _records(kind: str) -> dict[str, Any]:
    docs = {field.name: field.doc for field in LAYERS["images"].fields}
    fields = [_field(kind, column.name, docs.get(column.name, "the caption"), column.type)
              for column in huggingface.FIELDS if str(column.type) in _TYPES or column.name == "image"]
    return {"@type": "cr:RecordSet", "@id": kind, "name": kind, "key": {"@id": f"{kind}/sample_id"}, "field": fields,
            "description": f"samples whose image licence is of the class {kind}"}


def _field(kind: str, name: str, doc: str, of: pa.DataType) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": f"files-{kind}"}, "extract": {"column": name}}
    if name == "image":
        source["transform"] = {"jsonPath": "bytes"}
    return {"@type": "cr:Field", "@id": f"{kind}/{name}", "name": name, "description": doc, "source": source,
            "dataType": "sc:ImageObject" if name == "image" else _TYPES[str(of)]}
