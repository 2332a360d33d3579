"""How well captions are divided among panels: generated captions of many grammars, whose parts are known.

    python tests/benchmarks/subcaptions.py [--count 300] [--seed 0]

Two tables. By grammar: the share of panels whose words are exactly those that were written for them, whose characters
overlap with them by more than 0.8 (intersection over union), whose words are wrong, and that got none; `none` is a
grammar of captions without panels, where any part at all is wrong. By letter: drawn figures of tests/compound.py, their
true letters in, the stage's matching out. What is made here is cleaner than what is published: it tells where the
grammar breaks, not how it does on journals.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from compound import make  # noqa: E402

from transforms.figures.matching import Panel, assign  # noqa: E402
from transforms.figures.subcaptions import split  # noqa: E402

TITLES = (
    "Imaging of a 45-year-old man with hepatitis B. ", "Expression in type I cells (n = 5). ", "",
    "Vitamin A levels fell (p < 0.05, see Fig. 2). ", "Follow-up. The patient was seen twice (cf. Table 1). ",
)
THINGS = (
    "axial CT of the abdomen", "T2-weighted MRI (arrow)", "haematoxylin and eosin stain, ×40",
    "growth of E. coli vs. control", "mean (± SD) of group A", "HeLa cells in 5% serum", "sagittal PET/CT",
    "levels of IgA and IgG after 24 h", "survival of B cells (n = 12)", "a 3D rendering of the skull",
)
MORE = ("", "", ". It measures 3.5 cm", ". Arrows mark the lesion, cf. Fig. 3", ". The rest is normal (arrow)")
ENDS = ("", "", " Scale bars, 10 µm.", " Data are mean ± SD.", " CT, computed tomography; MR, magnetic resonance.")
Made = tuple[str, dict[str, str]]


def lead(form: str, case: str = "ABCDEFGH", stop: str = ".", upper: bool = True) -> Callable[[random.Random], Made]:
    """Labels before their words: "(A) Axial CT. (B) MRI." """

    def write(chance: random.Random) -> Made:
        caption, said = chance.choice(TITLES), {}
        for label in case[: chance.randint(2, 6)]:
            words = chance.choice(THINGS)
            words = (words[0].upper() + words[1:] if upper else words) + (chance.choice(MORE) if stop == "." else "")
            said[label] = words
            caption += form.format(label) + words + stop + " "
        caption = caption.rstrip(" ;") + ("" if stop == "." else ".")
        return caption + chance.choice(ENDS), said

    return write


def follow(chance: random.Random) -> Made:
    """Labels after their words: "CT (A), MRI (B) and PET (C)." """
    things = chance.sample(THINGS, chance.randint(2, 4))
    things[0] = things[0][0].upper() + things[0][1:]
    labels = "ABCD"[: len(things)]
    pieces = [f"{thing} ({label})" for thing, label in zip(things, labels, strict=True)]
    caption = chance.choice(TITLES) + ", ".join(pieces[:-1]) + f" and {pieces[-1]}."
    return caption + chance.choice(ENDS), dict(zip(labels, things, strict=True))


def grouped(chance: random.Random) -> Made:
    """Ranges and sets: "(A–C) CT. (D, E) MRI. (F) PET." """
    a, b, c = (chance.choice(THINGS).capitalize() for _ in range(3))
    caption = f"{chance.choice(TITLES)}(A–C) {a}. (D, E) {b}. (F) {c}."
    return caption + chance.choice(ENDS), dict(zip("ABCDEF", (a, a, a, b, b, c), strict=True))


def headed(chance: random.Random) -> Made:
    """A head that several share: "(A–B) Maps of (A) mice and (B) men. (C) Key." Parts are told without the head."""
    a, b = chance.sample(THINGS, 2)
    c = chance.choice(THINGS).capitalize()
    caption = f"{chance.choice(TITLES)}(A, B) Comparison of (A) {a} and (B) {b}. (C) {c}."
    return caption, {"A": f"Comparison of {a}", "B": f"Comparison of {b}", "C": c}


def sides(chance: random.Random) -> Made:
    pair = chance.choice((("Left", "Right"), ("Top", "Bottom"), ("Upper panel", "Lower panel")))
    a, b = chance.sample(THINGS, 2)
    caption = f"{chance.choice(TITLES)}{pair[0]}: {a}. {pair[1]}: {b}."
    names = (word.lower().split()[0] for word in pair)
    return caption + chance.choice(ENDS), dict(zip(names, (a, b), strict=True))


def nothing(chance: random.Random) -> Made:
    traps = (
        "A 63-year-old woman. B cells were counted.", "Blot of cytoplasm (C) and nucleus (N).",
        "Group A: control. Group B: drug.", "Levels of vitamins A, B, and C.", "See panel B of Fig. 3 (a.u.).",
        "Axes: A=anterior; P=posterior.", "p < 0.05 (c).", "The left lung: collapsed. The right lung: normal.",
    )
    return chance.choice(TITLES) + " ".join(chance.sample(traps, 2)) + chance.choice(ENDS), {}


GRAMMARS: dict[str, Callable[[random.Random], Made]] = {
    "(A) X. (B) Y.": lead("({}) "), "(a) x; (b) y": lead("({}) ", "abcdefgh", ";", False), "A, X. B, Y.": lead("{}, "),
    "A: X. B: Y.": lead("{}: "), "A. X. B. Y.": lead("{}. "), "A) X. B) Y.": lead("{}) "),
    "a X. b Y.": lead("{} ", "abcdefgh"), "A X. B Y.": lead("{} "),
    "Panel A shows x.": lead("Panel {} shows ", upper=False), "Figure 1A: X.": lead("Figure 1{}: "),
    "1, x; 2, y": lead("{}, ", "12345678", ";", False),
    "x (A) and y (B)": follow, "(A–C) X. (D, E) Y.": grouped, "(A, B) Z of (A) x": headed, "Left: x. Right: y.": sides,
    "none": nothing,
}


def overlap(said: str, meant: str) -> float:
    """Intersection over union of the words' characters, order left aside."""
    a, b = Counter(said.replace(" ", "")), Counter(meant.replace(" ", ""))
    return (a & b).total() / max(1, (a | b).total())


def judged(caption: str, meant: dict[str, str]) -> Iterator[str]:
    """exact, close, wrong or missing for each panel; for captions without panels exact or wrong."""
    made = split(caption)
    said = {label: part.spans for part in made.parts for label in part.labels}
    if not meant:
        yield "wrong" if said else "exact"
    for label, words in meant.items():
        found = " ".join(caption[a:b] for a, b in said.get(label, ())).rstrip(".")
        if label not in said:
            yield "missing"
        else:
            yield "exact" if found == words else "close" if overlap(found, words) > 0.8 else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="captions a grammar, and drawn figures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'grammar':22} {'panels':>7} {'exact':>7} {'IoU>0.8':>8} {'wrong':>7} {'missing':>8}")
    for name, write in GRAMMARS.items():
        chance = random.Random(f"{options.seed} {name}")
        told = Counter(v for _ in range(options.count) for v in judged(*write(chance)))
        total = told.total()
        shares = (told["exact"], told["exact"] + told["close"], told["wrong"], told["missing"])
        cells = [f"{n / total:{w}.3f}" for n, w in zip(shares, (7, 8, 7, 8), strict=True)]
        print(f"{name:22} {total:7}", *cells)
    told = Counter(v for seed in range(min(options.count, 60)) for v in drawn(options.seed + seed))
    print(f"\ndrawn figures, true letters: {told.total()} panels with words of their own, {told['right']} right, "
          f"{told['wrong']} wrong, {told['none']} without")


def drawn(seed: int) -> Iterator[str]:
    """Whether each panel of a drawn figure gets the words written for it."""
    made = make(seed)
    division = split(made.caption)
    said = {label: part.spans for part in division.parts for label in part.labels}
    names = assign([Panel(box, letter, 1.0) for letter, box in made.panels], division.labels)
    for (letter, box), name in zip(made.panels, names, strict=True):
        true = letter or ("left" if box[0] == min(other[0] for _, other in made.panels) else "right")
        if true not in made.parts:
            continue
        start, end = made.parts[true]
        words = "" if name is None else " ".join(made.caption[a:b] for a, b in said.get(name.label, ()))
        yield "none" if not words else "right" if words.rstrip(".") == made.caption[start:end].rstrip(".") else "wrong"


if __name__ == "__main__":
    main()
