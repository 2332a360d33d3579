"""What a text claims about its image, and whether the sample's rows bear it out: rules and word lists, no model.

The invariant: everything that decides a verdict is a row, a rule of this package or a word of its lists; `ingredients`
names the lists for a stage's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.keys import sha256

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[1]
LISTS = (
    *(_FOLDER / name for name in ("lexicon.yaml", "negation.yaml", "problems.yaml")),
    _ROOT / "transforms" / "terms" / "map.yaml",
    _ROOT / "infra" / "languages.yaml",
    _ROOT / "infra" / "outbound.yaml",
)


def ingredients() -> Mapping[str, str]:
    """Name of a word list -> hash of its content."""
    return {path.name: sha256(path.read_bytes()) for path in LISTS}
