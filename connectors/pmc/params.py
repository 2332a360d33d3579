"""What a recipe may set for the connector pmc.

The invariant: what only a bucket understands is refused for a folder, and a misspelt licence everywhere.

>>> Params(root="s3://pmc-oa-opendata", ids="brain_mri.txt", licences=("commercial",)).in_bucket
True
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from connectors.pmc.licences import check_licences


class Params(BaseModel):
    """Where the articles are, and which of their figures are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder or archive (~ and $VARIABLES are expanded), pkg:PACKAGE/PATH, or s3://BUCKET "
                      "of the layout of PMC's: s3://pmc-oa-opendata is PMC's own")
    capacity: int = Field(20, ge=1, description="articles a partition; versions of one article are never divided")
    tables_as_images: bool = Field(True, description="take images of tables too; false: they are dropped, and counted")
    modality: str | None = Field(None, description="says the modality of every figure, where all have the same")
    endpoint: str | None = Field(None, description="s3: address of the server; null: AWS")
    anonymous: bool = Field(True, description="s3: unsigned requests; false: with the credentials of the environment")
    inventory: str | None = Field(
        None, pattern=r"^\d{4}-\d\d-\d\dT\d\d-\d\dZ$",
        description="s3: the inventory that says which articles there are, by its folder; null: the newest",
    )
    licences: tuple[str, ...] = Field(
        ("commercial", "noncommercial"),
        description="s3: classes or codes (CC0, CC-BY-NC …) of licences as the bucket states them. commercial and "
        "noncommercial are Creative Commons; other is none or another; TDM (to be mined, not published) is in no class",
    )
    published_from: date | None = Field(None, description="s3: first day of publication; a date must be known to fit")
    published_to: date | None = Field(None, description="s3: last day of publication")
    journals: tuple[str, ...] = Field((), description="s3: titles of journals as the XML gives them; empty: all")
    article_types: tuple[str, ...] = Field((), description="s3: research-article, case-report …; empty: all")
    keywords: tuple[str, ...] = Field(
        (), description="s3: at least one stands as a whole word in title, keywords or abstract; empty: all"
    )
    ids: str | None = Field(None, description="s3: a file of PMCIDs, one a line, as a search of PMC gives them")
    versions: Literal["newest", "all"] = Field("newest", description="s3: which versions of an article are wanted")
    in_flight: int = Field(16, ge=1, le=256, description="s3: requests under way at once, in each process")
    requests_per_second: float = Field(100, gt=0, description="s3: requests sent in a second at most, by each process")
    cache_gb: float = Field(20, ge=0, description="s3: about how much of what was fetched is kept in the home's cache")

    @property
    def in_bucket(self) -> bool:
        return self.root.startswith("s3://")

    @model_validator(mode="after")
    def _fits(self) -> Params:
        check_licences(self.licences)
        own = {"root", "capacity", "tables_as_images", "modality"}
        if not self.in_bucket and (others := sorted(self.model_fields_set - own)):
            raise ValueError(f"{', '.join(others)}: only for a root s3://BUCKET; leave it out")
        return self
