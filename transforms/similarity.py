"""Stage: how well each text fits its picture, as an image-text model of the CLIP family sees it.

The invariant: nothing is dropped and nothing judged. A number is written with the verdict pass, and whoever asks sets
the threshold, for one model and for texts of one kind. It does not say whether a text is true: `verify` does.

    - use: similarity
      model: /models/biomedclip        # a folder, see transforms/curation/encoder.py
      kinds: [original_caption, global]

Rows of `checks`; their `version` ends in the identity of the model, since numbers of two models cannot be compared:

    similarity/image_text   of a text: its cosine with the whole picture, -1 to 1; also of a text on a region of it;
                            detail `read in part` where the text is longer than the model reads
    signature/vector        of a sample: its vector, for the stage duplicates

    SELECT t.* FROM texts t JOIN checks c USING (sample_id, text_id)
      WHERE c."check" = 'similarity/image_text' AND c.value > 0.28

The model is loaded once per worker, on a GPU where `device` says cuda.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from transforms.curation import encoder as encoders
from transforms.curation.encoder import Encoder
from transforms.curation.vectors import DIGITS, VECTOR, written
from transforms.knowledge.embedding import Device
from transforms.stage import Context, Resources, Rows, SampleRows, Stage, each_sample

NAME = "similarity"
VERSION = "1"
REQUIRES: Mapping[str, str] = encoders.REQUIRES


class Params(BaseModel):
    """What a recipe may set for the similarity stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        exclude=True, description="folder of the model, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded; its "
        "contents enter the key",
    )
    device: Device = Field("cpu", description="cpu or cuda")
    kinds: tuple[str, ...] = Field((), description="kinds of texts that are compared with their picture; empty: all")
    vectors: bool = Field(True, description="write the vectors that duplicates looks by, 1.4 KB each of 512 numbers")


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for a folder that holds no model that is safe to load."""
    encoder = Encoder(params.model, params.device)
    return each_sample(
        NAME, VERSION, reads=("images", "texts"), writes=("checks",),
        row=partial(_compared, params, f"{VERSION}@{encoder.identity}"), params=params,
        ingredients={"encoder": encoder.fingerprint}, open=partial(Encoder, params.model, params.device),
        resources=Resources(gpus=1 if params.device == "cuda" else 0),
    )


def _compared(params: Params, version: str, sample: SampleRows, encoder: Encoder) -> Rows:
    texts = [row for row in sample.rows("texts") if not params.kinds or row["kind"] in params.kinds]
    if not texts and not params.vectors:
        return {}
    picture = encoder.picture(sample.pixels())
    checks: list[dict[str, Any]] = [
        {
            "text_id": row["text_id"], "check": "similarity/image_text",
            "value": round(float(encoder.text(row["text"]) @ picture), DIGITS),
            "detail": "read in part" if encoder.too_long(row["text"]) else None,
        }
        for row in texts
    ]
    if params.vectors:
        checks.append({"text_id": "", "check": VECTOR, "value": None, "detail": written(picture)})
    return {"checks": [{**check, "version": version, "verdict": "pass"} for check in checks]}
