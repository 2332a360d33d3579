"""Volume expert: structures of the brain in T1-weighted MR of the head, by the MeshNet models of brainchop.

The invariant: left and right are the patient's, and what is found lies on the scan's own grid. It looks at MR of brain
or head only; whether a scan is T1-weighted its row does not say, so a recipe that names this expert says it.

    - use: ground_volumes
      experts: [brain]
      options: {brain: {model: subcortical}}

Weights: `medloom weights fetch meshnet-tissue`. Method and measurements: meshnet.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Terminal
from infra.weights import locate, named
from transforms.experts import meshnet
from transforms.experts.card import Card
from transforms.experts.shapes import structure
from transforms.scans.volumes import Scan, Structure

NAME = "brain"
VERSION = "1"
REQUIRES = meshnet.REQUIRES
CARD = meshnet.CARDS["tissue"]


class Params(BaseModel):
    """What a recipe may set for the brain expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: meshnet.Model = Field(
        "tissue", description="tissue: white and grey matter, seconds a scan; subcortical: 17 structures, half a "
        "minute; parcels: 103 structures and parcels, left and right apart, of which only the place may be believed",
    )


def card(params: Params) -> Card:
    """The card of the model."""
    return meshnet.CARDS[params.model]


def ingredients(params: Params) -> Mapping[str, str]:
    """Hashes of the weights. Raises ConfigError where they are not there, or are others."""
    for name in meshnet.WEIGHTS[params.model]:
        locate(name)
    return {name: named(name).identity for name in meshnet.WEIGHTS[params.model]}


def segment(scan: Scan, params: Params) -> Iterator[Structure]:
    """One structure a class that is there. Raises Terminal NO_SPACING, and as `meshnet.segment` does."""
    if scan.affine is None:
        raise Terminal("NO_SPACING", "where the voxels lie in the patient is unknown, so left and right would be too")
    labels, classes = meshnet.segment(scan.values, scan.affine, params.model)
    for found in classes:
        made = structure(found, labels == found.value)
        if made is not None:
            yield made
