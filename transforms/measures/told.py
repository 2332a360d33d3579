"""What may be said of measures: the words that facts give to captioners, each with the measure it rests on.

The invariant: a word is said only where the row of `measures` it rests on holds it, and no extent is told of an outline
that may not be believed.

What `extent` says of the share of the image that an outline covers, lower edges inclusive:

    under 0.1%  a tiny part of the image       10 to 50%   a large part of the image
    0.1 to 1%   a small part of the image      from 50%    most of the image
    1 to 10%    a part of the image

>>> percent(0.041), extent(0.041)
('4.1%', 'a part of the image')
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MeasureFact:
    """A number measured on a region, or between two (transforms/measure.py)."""

    id: str
    name: str
    value: float
    unit: str | None
    words: str | None
    """what may be said of it; None: it is a number only"""

    @property
    def evidence(self) -> str:
        """Its evidence id, `measure:ID`."""
        return f"measure:{self.id}"


Measures = Mapping[str, MeasureFact]
"""name -> measure"""

SIZE = ("long_axis_mm", "box_width_mm")
"""Measures whose words tell a size."""
MEDIANS = ("median", "median_at_least", "median_at_most")
"""Measures whose words tell an intensity; a region has one of them."""
SAID = (*SIZE, "area_mm2", "roundness", "components", *MEDIANS, "contrast", "texture")
"""Measures of a region whose words a captioner may use, in this order."""
SAID_OF_PAIRS = ("distance_mm", "distance", "common")
"""Likewise of a pair."""


class _Measured:
    """What the words of measures say; shared by regions and pairs."""

    measures: Measures

    def measure(self, *names: str) -> MeasureFact | None:
        """The first of these measures that there is and that has words; its `evidence` is the id to cite."""
        found = (self.measures.get(name) for name in names)
        return next((fact for fact in found if fact is not None and fact.words), None)

    def _words(self, *names: str) -> str | None:
        fact = self.measure(*names)
        return None if fact is None else fact.words


class _Extent:
    """How much of the image an outline covers."""

    area_fraction: float
    trust: str

    @property
    def percent(self) -> str | None:
        """Share of the image in words ("4.1%", "under 0.1%"); None unless the outline may be believed."""
        return percent(self.area_fraction) if self.trust == "boundary" else None

    @property
    def extent(self) -> str | None:
        """"a small part of the image", by the edges in the module docstring; None unless the outline is believed."""
        return extent(self.area_fraction) if self.trust == "boundary" else None


class RegionWords(_Measured, _Extent):
    """What is said of a region."""

    @property
    def size(self) -> str | None:
        """"about 34 by 21 mm in this slice": along and across its long axis; of its box where only that is believed."""
        return self._words(*SIZE)

    @property
    def brightness(self) -> str | None:
        """"brighter than its surroundings", "darker than …" or "about as bright as …", as the stored picture shows."""
        return self._words("contrast")

    @property
    def intensity(self) -> str | None:
        """"a median of about 55 HU", for a CT with a known window."""
        return self._words(*MEDIANS)

    @property
    def texture(self) -> str | None:
        """"homogeneous" or "heterogeneous"; None where it is neither, or too small or too clipped to tell."""
        return self._words("texture")

    @property
    def shape(self) -> str | None:
        """"roughly round" or "elongated"; None where neither is true."""
        return self._words("roundness")

    @property
    def parts(self) -> str | None:
        """"in 3 separate parts"; None for one piece."""
        return self._words("components")

    @property
    def said(self) -> tuple[MeasureFact, ...]:
        """Its measures that have words, in the order of SAID."""
        return _said(self.measures, SAID)


class GroupWords(_Extent):
    """What is said of all regions of a label."""

    members: Sequence[RegionWords]

    @property
    def brightness(self) -> str | None:
        """What is said of every one of its regions, as for a region; None where they differ or one has no words."""
        return self._shared([m.brightness for m in self.members])

    @property
    def texture(self) -> str | None:
        """Likewise."""
        return self._shared([m.texture for m in self.members])

    @property
    def shape(self) -> str | None:
        """Likewise."""
        return self._shared([m.shape for m in self.members])

    @staticmethod
    def _shared(words: list[str | None]) -> str | None:
        return words[0] if words and len(set(words)) == 1 else None


class PairWords(_Measured):
    """What is said of two regions."""

    @property
    def distance(self) -> str | None:
        """"about 12 mm apart in this slice", "about 30 pixels apart" or "touching"; None: overlapping, or unknown."""
        return self._words("distance_mm", "distance")

    @property
    def touching(self) -> bool:
        """Whether there is no gap between their outlines; False also where nobody measured."""
        gap = self.measures.get("distance")
        return gap is not None and gap.value == 0

    @property
    def said(self) -> tuple[MeasureFact, ...]:
        """Its measures that have words, in the order of SAID_OF_PAIRS; a distance once."""
        told = _said(self.measures, SAID_OF_PAIRS)
        return tuple(fact for fact in told if not (fact.name == "distance" and told[0].name == "distance_mm"))


def percent(fraction: float) -> str:
    """A share of the image for a sentence: whole percents from 10 on, else one decimal, never a false 0 or 100."""
    value = 100 * fraction
    if value < 0.1:
        return "under 0.1%"
    return f"{value:.1f}%" if value < 9.95 or 99.5 <= value < 100 else f"{value:.0f}%"


def extent(fraction: float) -> str:
    """How much of the image a share is, in words; edges in the module docstring."""
    bins = ((0.001, "a tiny part"), (0.01, "a small part"), (0.1, "a part"), (0.5, "a large part"))
    return f"{next((words for edge, words in bins if fraction < edge), 'most')} of the image"


def _said(measures: Measures, names: Iterable[str]) -> tuple[MeasureFact, ...]:
    return tuple(measures[name] for name in names if name in measures and measures[name].words)
