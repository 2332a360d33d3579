"""The form of a grade: claims with their verdicts, and problems of the whole text.

The invariant: support is 1 only where every claim is supported and nothing is wrong with the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "refuted", "unsupported"]


@dataclass(frozen=True)
class Claim:
    """One thing that a text says."""

    text: str
    """the words of the claim, as they stand in the text"""
    kind: str
    """modality, anatomy, finding, laterality, count, size, position, relation, negation, number, appearance, knowledge
    or other"""
    verdict: Verdict
    evidence: tuple[str, ...]
    """evidence ids that decide it"""
    reason: str | None
    """for a person, and for a repair prompt: what is wrong; None where nothing is"""


@dataclass(frozen=True)
class Grade:
    """What a text claims, and what is wrong with it as a whole."""

    claims: tuple[Claim, ...]
    problems: tuple[str, ...]
    """of the whole text: leak phrase, obeyed instruction, identifier, copied passage, wrong language"""

    @property
    def support(self) -> float | None:
        """Share of its claims that are supported, 0 to 1; 0 where there is a problem; None: it claims nothing."""
        if self.problems:
            return 0.0
        if not self.claims:
            return None
        return sum(claim.verdict == "supported" for claim in self.claims) / len(self.claims)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The problems, then the reasons of the claims that are not supported, each once."""
        wanting = [c.reason or f'no row says "{c.text}"' for c in self.claims if c.verdict != "supported"]
        return tuple(dict.fromkeys([*self.problems, *wanting]))
