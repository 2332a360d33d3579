"""What a recipe may say of images in folders, whatever the layout: which files, which masks, which words.

The invariant: nothing here depends on a layout; every connector of images in folders has these parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Rules(BaseModel):
    """Where the images are, and how the source's words are to be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    include: tuple[str, ...] = Field(
        (), description="globs of paths below root (* crosses folders); empty: files with the suffix of an image, and "
        "files without suffix that begin like one",
    )
    exclude: tuple[str, ...] = Field((), description="globs of paths below root that are left out")
    splits: tuple[str, ...] = Field((), description="folders that are no class but a split: train, valid, test")
    split_lists: Mapping[str, str] = Field({}, description="split -> file below root that lists its images, one a line")
    mask_label: str | None = Field(None, description="pairs: what the masks show")
    masks: Mapping[str, str] = Field(
        {}, description="label -> glob of its masks below root, with {stem} (the image's name without suffix), "
        "{folder}, {up} (the folder above the image's) and {rater} (who drew it)",
    )
    class_mask: str | None = Field(
        None, description="glob of masks whose pixel values or colours say the class, with the same words in braces"
    )
    classes: Mapping[str, str] = Field(
        {}, description="class_mask: value or #rrggbb -> label; '' is no region; '*': any other is an instance of it"
    )
    label_map: Mapping[str, str] = Field({}, description="source's word -> label; to leave a label out, map it to ''")
    fact_map: Mapping[str, str] = Field({}, description="source's word -> word, in modality, anatomy, view")
    roles: Mapping[str, str] = Field({}, description="label -> role: organ, lesion, cell, device …; default region")
    modality: str | None = Field(None, description="of all images of which no column says otherwise")
    anatomy: str | None = Field(None, description="likewise")
    view: str | None = Field(None, description="likewise")
    patient_pattern: str | None = Field(
        None, description="regular expression that finds the patient, study or video in a path"
    )
    annotated_fit: Literal["same", "scale"] = Field(
        "same", description="scale: boxes and outlines drawn on an image of another size but the same shape are scaled"
    )
    annotated_upright: bool | None = Field(
        None, description="whether boxes and outlines were drawn on the image as EXIF turns it; "
        "null: as the layout has it"
    )
    capacity: int = Field(500, ge=1, description="images a partition; those of a patient are never divided")

    @field_validator("patient_pattern")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @field_validator("classes")
    @classmethod
    def _values(cls, classes: Mapping[str, str]) -> Mapping[str, str]:
        for value in classes:
            if not re.fullmatch(r"\*|\d+|#[0-9a-fA-F]{6}", value):
                raise ValueError(f"{value!r} is neither a pixel value, nor #rrggbb, nor *")
        return {value.lower(): label for value, label in classes.items()}
