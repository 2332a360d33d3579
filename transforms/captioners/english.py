"""The grammar that fixed sentences need: articles, plurals, small numbers, things in a row.

The invariant: a label's own words are never changed, only what stands around them.

>>> the("liver"), does("lungs", "lies", "lie"), counted(3, "platelet"), sentence("it is seen")
('the liver', 'lie', 'three regions labelled platelet', 'It is seen.')
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transforms.vocabulary import listed

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SINGULAR = re.compile(r"(?:ss|us|is|as|os|ps|ites|ies|etes|pes|lens|pons)$", re.IGNORECASE)
"""Ends of words in s that are no plural: mass, uterus, pelvis, pancreas, epidermidos, biceps, ascites, caries."""
_PLURAL = re.compile(r"(?:[a-z]s|vertebrae|nuclei|teeth|bronchi|ova|feet)$", re.IGNORECASE)
_NUMBERED = re.compile(r" \d+$")


def plural(label: str) -> bool:
    """Whether a label names several things, by its last word: lungs, vertebrae, a and b; not pancreas or mass."""
    if " and " in label:
        return True
    last = label.split()[-1] if label.split() else ""
    if re.search(r"(?:arteries|cavities|biopsies|bodies|opacities|ovaries)$", last, re.IGNORECASE):
        return True
    return bool(_PLURAL.search(last)) and not _SINGULAR.search(last) and not last.isupper()


def the(label: str) -> str:
    """The label with "the" before it where an article can stand: not before a number (vertebra 3) or a name (L3)."""
    bare = label.lower().startswith(("the ", "a ", "an ", "panel ")) or bool(re.search(r"(?:^| )[A-Z]*\d+$", label))
    return label if bare else f"the {label}"


def does(label: str, one: str, many: str) -> str:
    """The form of a verb or pronoun that goes with a label."""
    return many if plural(label) else one


def counted(count: int, label: str) -> str:
    """So many regions of a label, a number up to twelve in letters."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} region{'s' if count != 1 else ''} labelled {label}"


def sentence(words: str) -> str:
    """With a capital at its start and a full stop at its end; its own full stop is not doubled."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?", ".”")) else ".")


def prose(sentences: Iterable[str]) -> str:
    """Sentences one after the other; empty ones are left out."""
    return " ".join(filter(None, sentences))


def row(things: Sequence[str]) -> str:
    """Things in a row: "a", "a and b", "a, b and c"; nothing for none."""
    return listed(things) if things else ""
