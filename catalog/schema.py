"""The layers of a dataset, field by field: the one place that defines them.

A sample is one 2-D image. Its pixels are stored once, in `images`; everything said about it lives in other layers, all
keyed by `sample_id`. Null means unknown, never "none" and never a default.

>>> LAYERS["rois"].schema.field("box").type
FixedSizeListType(fixed_size_list<item: int32>[4])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

VERSION = 2
"""Schema version, recorded in every manifest; it moves when a field changes its meaning or type."""

STR, I32, F32, F64, BOOL = pa.string(), pa.int32(), pa.float32(), pa.float64(), pa.bool_()
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _list(item: pa.DataType, size: int = -1) -> pa.DataType:
    return pa.list_(item, size)


@dataclass(frozen=True)
class Field:
    """One column. `doc` says what it holds, in which unit; `required` ones are never null."""

    name: str
    type: pa.DataType
    doc: str
    required: bool = False
    indexed: bool = True
    """copied into the catalog; what is large stays in the shards alone"""


@dataclass(frozen=True)
class Layer:
    """One table of the dataset."""

    name: str
    row: str
    """What one row is."""
    key: tuple[str, ...]
    """The columns that identify a row."""
    fields: tuple[Field, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the layer."""
        return pa.schema([pa.field(f.name, f.type, nullable=not f.required) for f in self.fields])

    def table(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """Rows as a table of this layer: missing columns are null, unknown ones and null keys are a ValueError."""
        rows = list(rows)
        names = set(self.schema.names)
        for row in rows:
            if unknown := set(row) - names:
                raise ValueError(f"layer {self.name} has no column {sorted(unknown)}; catalog/schema.py lists them")
        columns = []
        for field in self.fields:
            values = [row.get(field.name) for row in rows]
            if field.required and any(v is None for v in values):
                raise ValueError(f"layer {self.name}: {field.name} may not be null")
            columns.append(pa.array(values, field.type))
        return pa.Table.from_arrays(columns, schema=self.schema)


SAMPLE = Field("sample_id", STR, "hash of source, item, its bytes and the place within them (page, slice, panel)", True)
LICENCES = (
    Field("licence_image", STR, "licence of the pixels as an SPDX-like code (CC-BY-4.0, CC0-1.0 …); null: unknown"),
    Field("licence_text", STR, "licence of the source's own texts"),
    Field("licence_annotation", STR, "licence of the source's own labels, masks and boxes"),
    Field("licence_evidence", STR, "where the licences were read: recipe, article XML, metadata column"),
)

_LAYERS = (
    Layer("images", "a sample: one 2-D image, its pixels stored once", ("sample_id",), (
        SAMPLE,
        Field("image", IMAGE, "encoded pixels: the original bytes of a web format, else lossless PNG; path is a name "
              "for exports, never a place on disk", True, indexed=False),
        Field("width", I32, "columns of the stored image, pixels", True),
        Field("height", I32, "rows of the stored image, pixels", True),
        Field("source", STR, "name of the source in the recipe", True),
        Field("source_item", STR, "item of the source it came from, relative to the source; a pseudonym where "
              "identifiers are private (`medloom locate` finds it again)", True),
        Field("source_uri", STR, "public address of the item where there is one"),
        Field("source_version", STR, "version of the item as its source states it (article version, release)"),
        Field("group_id", STR, "patient, article or video, pseudonymous: never split across train and test", True),
        Field("article_id", STR, "the publication it is a figure of: articles.article_id"),
        Field("parent_id", STR, "the sample it was cut from, for a panel of a compound figure"),
        Field("parent_box", _list(I32, 4), "where it lies in its parent: x0, y0, x1, y1 in pixels of the parent's "
              "stored image, half-open"),
        Field("modality", STR, "DICOM modality code (CT, MR, DX, CR, US, XC …) or a word of vocabulary.yaml"),
        Field("anatomy", STR, "body region in plain words, as stated by the source"),
        Field("view", STR, "axial, coronal, sagittal, PA, lateral …"),
        Field("volume_id", STR, "the volume this is a slice of"),
        Field("slice_index", I32, "index along the axis of the volume's own array (as in volumes.shape) closest to "
              "the view's normal; or frame number of a cine, from 0"),
        Field("window", _list(F64, 2), "lower and upper value (HU or raw, after rescale) mapped to grey 0 and 255"),
        Field("pixel_spacing", _list(F64, 2), "mm per row, mm per column of the stored image; null: unknown"),
        Field("orientation", STR, "patient directions in which columns and rows grow, as two letters (LP: to the "
              "patient's left and posterior); null: not a patient-oriented image"),
        Field("lossy", BOOL, "the pixels went through a lossy codec before we got them; null: unknown"),
        Field("sha256", STR, "SHA-256 of image.bytes", True),
        Field("pixel_sha256", STR, "SHA-256 of height, width, channels and the decoded pixels", True),
        Field("phash", STR, "64-bit DCT perceptual hash, 16 hex digits"),
        *LICENCES,
    )),
    Layer("volumes", "a 3-D scan, by reference", ("volume_id",), (
        Field("volume_id", STR, "hash of source, series, the bytes of its files in order, and the frame of a 4-D file",
              True),
        Field("source", STR, "name of the source in the recipe", True),
        Field("group_id", STR, "patient, pseudonymous", True),
        Field("items", _list(STR), "the source's items it is made of, in slice order", True),
        Field("sha256", _list(STR), "SHA-256 of each file (of a pair: header, voxels), checked when the volume is "
              "opened again", True),
        Field("modality", STR, "DICOM modality code"),
        Field("shape", _list(I32, 3), "voxels along the three array axes (x, y, z: fastest first)", True),
        Field("affine", _list(F64, 16), "voxel index (x, y, z, 1) to millimetres in RAS+, row by row; null: unknown"),
        Field("spacing", _list(F64, 3), "mm along the three axes; null: unknown"),
        Field("orientation", STR, "patient directions in which the axes grow, three letters (LPS, RAS …)"),
        Field("rescale_applied", BOOL, "values were turned into the modality's unit (HU for CT)"),
        Field("geometry_flags", _list(STR), "what is odd: gap, non_uniform, tilt, duplicate_slices, "
              "sform_qform_differ, qform_invalid, no_orientation, not_hounsfield, labels_resampled, "
              "labels_grid_mismatch, labels_not_integers, labels_not_finite, labels_undeclared"),
        Field("header", STR, "further header facts after de-identification, as JSON"),
        Field("study_uid", STR, "DICOM: StudyInstanceUID of the files that others have: the file's own where "
              "identifiers are public, else the one that `medloom deid` gives under the same key; null: not DICOM"),
        Field("series_uid", STR, "SeriesInstanceUID, likewise"),
        Field("frame_of_reference_uid", STR, "FrameOfReferenceUID, likewise"),
        Field("sop_class_uid", STR, "SOPClassUID of all its files, as it is; null where they differ"),
        Field("sop_uids", _list(STR), "SOPInstanceUID, likewise, of the file that each index of the third axis lies "
              "in; null where these are no frames of files", indexed=False),
        Field("sop_frames", _list(I32), "number of the frame in that file, from 1; null: files of one frame each",
              indexed=False),
        Field("slice_positions", _list(_list(F64, 3)), "centre of the first pixel of each of these frames as the file "
              "states it: mm, x, y, z in LPS", indexed=False),
        *LICENCES,
    )),
    Layer("articles", "a publication, once, however many figures it has", ("article_id",), (
        Field("article_id", STR, "PMCID, else DOI, else a hash of the XML", True),
        Field("source", STR, "name of the source in the recipe", True),
        Field("version", STR, "version of the article as its source states it"),
        Field("title", STR, "article title"),
        Field("journal", STR, "journal title"),
        Field("date", STR, "publication date, ISO 8601, as far as it is known (2024, 2024-05, 2024-05-17)"),
        Field("pmid", STR, "PubMed id"),
        Field("doi", STR, "DOI"),
        Field("keywords", _list(STR), "keywords and MeSH terms the article gives"),
        Field("article_type", STR, "research-article, case-report, review-article … in the article's own words"),
        Field("subjects", _list(STR), "subject headings the publisher gives"),
        Field("abstract", STR, "the abstract as running text"),
        Field("body", STR, "the text without figures, tables and references, a blank line between paragraphs",
              indexed=False),
        Field("licence", STR, "licence as an SPDX-like code; null: unknown, also where article and archive differ"),
        Field("licence_evidence", STR, "the element or file and the words it was read from"),
        Field("licence_stated", STR, "what the archive's own record says the licence is; null: it says nothing"),
        Field("licence_agrees", BOOL, "article and archive state one licence; null: one of them is silent"),
        Field("retracted", BOOL, "retracted as far as the source says; null: unknown"),
    )),
    Layer("labels", "a fact the source states about a sample", ("sample_id", "label_id"), (
        SAMPLE,
        Field("label_id", STR, "hash of sample, name, origin and value", True),
        Field("name", STR, "the finding, class or attribute, in the source's words", True),
        Field("value", STR, "present, absent, uncertain, or the attribute's value", True),
        Field("ontology_id", STR, "concept id such as HP:0002202; null: not mapped"),
        Field("origin", STR, "where it was read: folder, csv:COLUMN, dicom:KEYWORD, jats, recipe", True),
    )),
    Layer("rois", "a region of a sample", ("sample_id", "roi_id"), (
        SAMPLE,
        Field("roi_id", STR, "hash of sample, label, box, mask and expert", True),
        Field("label", STR, "what the region shows, in the annotator's or expert's words", True),
        Field("ontology_id", STR, "concept id; null: not mapped"),
        Field("role", STR, "organ, lesion, cell, panel, device, text, body or region", True),
        Field("box", _list(I32, 4), "x0, y0, x1, y1 in pixels of the stored image, half-open: x1 - x0 is the width",
              True),
        Field("mask", pa.struct([("size", _list(I32, 2)), ("counts", STR)]),
              "COCO run-length code over the stored image (height, width); null: only a box is known"),
        Field("area_fraction", F64, "mask pixels (or box area where there is no mask) over image pixels, 0 to 1", True),
        Field("position", STR, "place in words, see transforms/regions.py for the bin edges", True),
        Field("score", F32, "confidence 0 to 1; null: not given"),
        Field("expert", STR, "the expert that found it, or 'source', 'source:RATER' or 'human:REVIEWER'", True),
        Field("expert_weights_sha256", STR, "hash of the expert's weights; null: it has none"),
        Field("origin", STR, "given, predicted or human", True),
        Field("trust", STR, "boundary, box or presence: how far the outline may be believed", True),
    )),
    Layer("measures", "a number measured on a region, or between two regions", ("sample_id", "measure_id"), (
        SAMPLE,
        Field("measure_id", STR, "hash of sample, regions and name", True),
        Field("roi_id", STR, "the region measured", True),
        Field("other_roi_id", STR, "the region it is measured against; null: it is of one region"),
        Field("name", STR, "what was measured: area, long_axis, mean, distance …; transforms/measure.py lists them",
              True),
        Field("value", F64, "the number", True),
        Field("unit", STR, "px, %, mm, mm2, HU, grey; null: a plain number, a ratio, bits"),
        Field("words", STR, "what may be said of it in a sentence; null: it is a number only"),
        Field("version", STR, "version of the measurement", True),
    )),
    Layer("passages", "a passage retrieved for a sample", ("sample_id", "rank"), (
        SAMPLE,
        Field("rank", I32, "place in the ranking, from 1: by words and meaning unless the recipe says otherwise",
              True),
        Field("passage_id", STR, "stable id of the passage in its corpus", True),
        Field("corpus", STR, "name of the corpus", True),
        Field("text", STR, "the passage", True),
        Field("query", STR, "the query that found it; @NAME: the route that chose its corpora", True),
        Field("score", F32, "cosine similarity of query and passage, however it was ranked", True),
        Field("licence", STR, "licence of the passage"),
    )),
    Layer("texts", "something said about a sample, a region or a pair of regions", ("sample_id", "text_id"), (
        SAMPLE,
        Field("text_id", STR, "hash of sample, kind, regions and generator", True),
        Field("roi_ids", _list(STR), "the regions it speaks of, in order; empty: the whole image", True),
        Field("kind", STR, "original_caption, group_caption, caption_context, mention, report, findings, impression, "
              "question, choices, answer, global, region, relation, volume, panel, lay, report_sentence, variant, "
              "phrase, interleaved, knowledge …; the five parts of a caption are part/modality, part/organs, "
              "part/region, part/texture, part/relation", True),
        Field("language", STR, "ISO 639-1 code", True),
        Field("text", STR, "the text", True),
        Field("evidence", _list(STR), "what it rests on: label:ID, roi:ID, measure:ID, passage:ID, text:ID, "
              "image:FIELD; words cut from a text: text:ID@START:END", True),
        Field("generator", STR, "source, human, or the captioner's name and version; of questions /topic/form too",
              True),
        Field("model", STR, "model id as the server answered it; null: no model"),
        Field("prompt_sha256", STR, "hash of the prompt template; null: no prompt"),
        Field("request_sha256", STR, "key of the request in the cache; null: no request"),
        Field("tokens_in", I32, "prompt tokens billed for the request, on the first text it yielded"),
        Field("tokens_out", I32, "answer tokens billed, likewise"),
        Field("cost_usd", F64, "tokens times the recipe's prices; null: no price given"),
        Field("licence", STR, "strictest licence of what it was made from; null: unknown"),
    )),
    Layer("checks", "a score or a verdict about a sample or a text", ("sample_id", "text_id", "check"), (
        SAMPLE,
        Field("text_id", STR, "the text judged, or '' for the whole sample", True),
        Field("check", STR, "name of the check", True),
        Field("version", STR, "version of the check", True),
        Field("value", F64, "its score; null: it gives only a verdict"),
        Field("verdict", STR, "pass, fail or unknown", True),
        Field("detail", STR, "what was found, for a person; of claim/NN the claim as JSON"),
    )),
    Layer("rejects", "an item or sample that did not make it through a stage", ("item", "stage", "code"), (
        Field("item", STR, "item of the source (ingest) or sample_id (later stages)", True),
        Field("source", STR, "name of the source in the recipe", True),
        Field("partition", STR, "partition of the source", True),
        Field("stage", STR, "the stage that rejected it", True),
        Field("outcome", STR, "dropped (a rule left it out) or failed", True),
        Field("code", STR, "reason, a stable upper-case word", True),
        Field("message", STR, "what happened and what to do, at most 500 characters", True),
        Field("retryable", BOOL, "trying again may help: medloom build --retry-failed", True),
        Field("attempt", I32, "which attempt this was, from 0", True),
    )),
)

LAYERS: Mapping[str, Layer] = {layer.name: layer for layer in _LAYERS}
