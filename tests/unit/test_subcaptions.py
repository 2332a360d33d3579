"""Captions divided among panels: grammars, traps, sentences that cite a panel, and which panel is which."""

from __future__ import annotations

import random

import pytest

from transforms.figures.labels import expand
from transforms.figures.matching import Panel, assign
from transforms.figures.mentions import by_panel, figure_number, number_cited
from transforms.figures.sentences import sentences
from transforms.figures.subcaptions import split


def told(caption: str) -> dict[str, str]:
    """Labels -> their words; "*" -> those that are common."""
    made = split(caption)
    words = {",".join(p.labels): " | ".join(caption[a:b] for a, b in p.spans) for p in made.parts}
    return {**words, "*": " | ".join(caption[a:b] for a, b in made.common)}


@pytest.mark.parametrize(("caption", "said"), [
    ("(A) Axial CT; (B) coronal MRI.", {"A": "Axial CT", "B": "coronal MRI."}),
    ("Liver. (a) CT. It is large. (b) MRI.", {"a": "CT. | It is large.", "b": "MRI.", "*": "Liver."}),
    ("Heart. A, CT of it. B, MRI of it.", {"A": "CT of it.", "B": "MRI of it.", "*": "Heart."}),
    ("A: CT; B: MRI.", {"A": "CT", "B": "MRI."}),
    ("A. CT. B. Growth of A. baumannii.", {"A": "CT.", "B": "Growth of A. baumannii."}),
    ("Liver. A) CT of it B) MRI of it (group B) now", {"A": "CT of it", "B": "MRI of it (group B) now", "*": "Liver."}),
    ("a–c, Overview. d, Detail.", {"a,b,c": "Overview.", "d": "Detail."}),
    ("(A–C) Blots. (D) Gel.", {"A,B,C": "Blots.", "D": "Gel."}),
    ("(A, B) Blots. (C)-(E) Gels.", {"A,B": "Blots.", "C,D,E": "Gels."}),
    ("(A and B) Blots. (C) Gel.", {"A,B": "Blots.", "C": "Gel."}),
    ("A and B, Blots. C, Gel.", {"A,B": "Blots.", "C": "Gel."}),
    ("Findings. A and B: CT shows a mass.", {"A,B": "CT shows a mass.", "*": "Findings."}),
    ("CT (A) and MRI (B) of the liver.", {"A": "CT | of the liver.", "B": "MRI | of the liver."}),
    ("Fig. 1. CT (A) and MR (B, C) with no lesion.", {"A": "CT | with no lesion.", "B,C": "MR | with no lesion."}),
    ("T cells grew (A). B cells died (B). Mean ± SD.", {"A": "T cells grew", "B": "B cells died", "*": "Mean ± SD."}),
    ("Histology (A, H&E) and CT (B, arrow).", {"A": "Histology", "B": "CT"}),
    ("Films showing (A) air and (B) fluid.", {"A": "Films showing | air", "B": "Films showing | fluid."}),
    ("Masses of A, LipH; B, LipN and C, LipY.",
     {"A": "Masses of | LipH", "B": "Masses of | LipN", "C": "Masses of | LipY."}),
    ("Sites. River: (A) depth; (B) width. Lake: (C) depth; (D) width.",
     {"A": "River | depth", "B": "River | width.", "C": "Lake | depth", "D": "Lake | width.", "*": "Sites."}),
    ("(A–B) Plots for: (A) mice; (B) men. (C) Key.", {"A": "Plots for | mice", "B": "Plots for | men.", "C": "Key."}),
    ("(A) Blot of cytoplasm (C) and nucleus (N). (B) Gel. (C) Key.",
     {"A": "Blot of cytoplasm (C) and nucleus (N).", "B": "Gel.", "C": "Key."}),
    ("Left: CT. Right: MRI.", {"left": "CT.", "right": "MRI."}),
    ("Top, CT; bottom, MRI.", {"top": "CT", "bottom": "MRI."}),
    ("Upper left panel: CT. Upper right panel: MRI. Lower panel: PET.",
     {"upper left": "CT.", "upper right": "MRI.", "lower": "PET."}),
    ("Maps of active (left) and silent (right) genes.",
     {"left": "Maps of active | genes.", "right": "silent | genes."}),
    ("(A) Stain, ×40; (B) T cells of group B. Data are mean ± SD.",
     {"A": "Stain, ×40", "B": "T cells of group B.", "*": "Data are mean ± SD."}),
    ("1, stain, ×40; 2, CT.", {"1": "stain, ×40", "2": "CT."}),
    ("(i) CT; (ii) MRI; (iii) PET.", {"i": "CT", "ii": "MRI", "iii": "PET."}),
    ("(A) Steps: (i) wash, (ii) dry. (B) Result.", {"A": "Steps: (i) wash, (ii) dry.", "B": "Result."}),
    ("Panel A shows the CT. Panels B and C show the MRI.", {"A": "the CT.", "B,C": "the MRI."}),
    ("Figure 1A: CT. Figure 1B: MRI.", {"A": "CT.", "B": "MRI."}),
    ("a Axial CT. b Coronal CT.", {"a": "Axial CT.", "b": "Coronal CT."}),
    ("A CT of the liver. B MRI of it.", {"A": "CT of the liver.", "B": "MRI of it."}),
    ("Organs. 1, liver; 2, spleen.", {"1": "liver", "2": "spleen.", "*": "Organs."}),
    ("(A1) CT. (A2) MRI. (B) PET.", {"A1": "CT.", "A2": "MRI.", "B": "PET."}),
    ("(A) CT, (b) MRI.", {"A": "CT", "b": "MRI."}),
    ("(A) CT. (B) MRI. Scale bar, 5 µm.", {"A": "CT.", "B": "MRI.", "*": "Scale bar, 5 µm."}),
    ("(A) CT. Scale bar, 1 mm. (B) MRI. Scale bar, 5 mm.",
     {"A": "CT. | Scale bar, 1 mm.", "B": "MRI. | Scale bar, 5 mm."}),
    ("(A) CT. (B) MRI. MR, magnetic resonance; CT, tomography.",
     {"A": "CT.", "B": "MRI.", "*": "MR, magnetic resonance; CT, tomography."}),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_caption_is_divided(caption, said):
    assert told(caption) == {"*": "", **said}
    assert 0.5 <= split(caption).confidence <= 1


@pytest.mark.parametrize("caption", [
    "", " \n", "A", "(A)", "(A) (B)", "A 45-year-old man with hepatitis B.", "Vitamin A and B levels (n = 5) (a.u.)",
    "A 45-year-old man. B cells infiltrate the liver. C is a vitamin.", "Group A: control. Group B: treated.",
    "Levels of vitamin A, B, and C.", "T cells (arrow) and (B) cells.", "CT shows a mass; p < 0.05 (c).",
    "Type I and type II cells. Fig. 1 shows more.", "(A) CT of the liver.", "(B) MRI. (A) CT.", "(C) CT. (D) MRI.",
    "(A) CT. (C) MRI.", "(A) CT. (B) MRI. (D) PET.", "The left lung: collapsed. The right lung: normal.",
    "The scans (left panel).", "Axes: A=anterior; P=posterior.", "From the most anterior (a) to the last (d) slice.",
    "See the masks in (a and b) that fail and in (c and d) that hold.",
], ids=lambda caption: caption[:40])
def test_what_is_not_sure_is_not_cut(caption):
    made = split(caption)
    assert made.parts == () and made.confidence == 0
    assert [caption[a:b] for a, b in made.common] == ([caption.strip()] if caption.strip("() \n") else [])


def test_words_between_two_labels_that_belong_to_both_are_not_cut():
    caption = "Scans. CT (A) was normal and MRI (B) showed a mass. PET (C)."
    assert told(caption) == {"A,B": "CT | was normal and MRI | showed a mass.", "C": "PET", "*": "Scans."}


WORDS = (
    "CT", "of", "the", "liver", "and", "in", "(n = 5)", "showing", "cells", "Scale bar", "et al.", "Fig. 2", "(arrow)",
    "or", "left", "(left)", "Right:", "µ", "\n", "p < 0.05", "vs.", "Panel", "É", "𝒜", "(", ")", "[", "1.5",
)
STOPS = (". ", "; ", ", ", " ", ": ", " – ", "\t")


def test_every_part_is_made_of_the_captions_words_whatever_the_caption():
    chance = random.Random(7)
    divided = 0
    for _ in range(3000):
        form = chance.choice(("({})", "{},", "{}.", "{}:", "{})", "{}", "Panel {}", "({}–{})", "1{}."))
        letters = chance.choice(("ABCDEF", "abcdef", "123456", ["i", "ii", "iii", "iv", "v"]))
        caption = ""
        for letter in letters[: chance.randint(1, 6)]:
            said = " ".join(chance.choices(WORDS, k=chance.randint(0, 5)))
            label = form.format(chance.choice((letter, letter, letter, chance.choice(letters))), letters[-1])
            caption += chance.choice((f"{label} {said}", f"{said} {label}")) + chance.choice(STOPS)
        made = split(caption)
        assert split(caption) == made
        divided += bool(made.parts)
        labels = [label for part in made.parts for label in part.labels]
        assert len(labels) == len(set(labels)) and len(labels) != 1
        for part in made.parts:
            assert any(c.isalnum() for a, b in part.spans for c in caption[a:b])
        for start, end in [*made.common, *(span for part in made.parts for span in part.spans)]:
            assert 0 <= start < end <= len(caption) and caption[start:end].strip() == caption[start:end]
        for part in made.parts:
            assert all(a[1] <= b[0] for a, b in zip(part.spans, part.spans[1:], strict=False))
    assert divided > 300


def test_a_caption_with_hundreds_of_labels_takes_no_time():
    chance = random.Random(1)
    caption = " ".join(f"({chance.choice('ABCDEFGH')}, {chance.choice('CDEFGHIJ')}) word" for _ in range(1500))
    split(caption)
    split("(A" * 3000)
    split("A, " * 3000)


def test_labels_are_counted_out():
    assert expand("A1-3", "upper") == ("A1", "A2", "A3") and expand("a, b and d", "lower") == ("a", "b", "d")
    assert expand("ii–iv", "roman") == ("ii", "iii", "iv") and expand("2-4", "digit") == ("2", "3", "4")
    assert expand("C-A", "upper") is None and expand("A, A", "upper") is None and expand("A1–C2", "upper") is None


def test_sentences_know_abbreviations():
    text = "See Fig. 2 (p < 0.05). E. coli grew, cf. Smith et al. (2001) vs. none! As in a. Next? In 1.5 ml etc. it is."
    assert [text[a:b] for a, b in sentences(text)] == [
        "See Fig. 2 (p < 0.05).", "E. coli grew, cf. Smith et al. (2001) vs. none!", "As in a.", "Next?",
        "In 1.5 ml etc. it is.",
    ]


@pytest.mark.parametrize(("mention", "number", "said"), [
    ("It grew (Fig. 1A). It died (Fig. 1B).", "1", {"A": ["It grew (Fig. 1A)."], "B": ["It died (Fig. 1B)."]}),
    ("So it was (Figure 2(b, c)). No.", "2", {label: ["So it was (Figure 2(b, c))."] for label in "bc"}),
    ("Figs 3A–C show it.", "3", {label: ["Figs 3A–C show it."] for label in "ABC"}),
    ("See Figs. 2B and 3C.", "3", {"C": ["See Figs. 2B and 3C."]}),
    ("See Figs. 2B and 3C.", "2", {"B": ["See Figs. 2B and 3C."]}),
    ("See Fig. 2. Panel B is odd. See Fig. 3; panel A is not.", "2", {"B": ["Panel B is odd."]}),
    ("Brain CT did not ( Fig. 1-A) .", "1", {"A": ["Brain CT did not ( Fig. 1-A) ."]}),
    ("(Figure 8C–D, Figure 8—figure supplement 3G)", "8-s3", {"G": ["(Figure 8C–D, Figure 8—figure supplement 3G)"]}),
    ("(Figure 8C–D, Figure 8—figure supplement 3G)", "8",
     {label: ["(Figure 8C–D, Figure 8—figure supplement 3G)"] for label in "CD"}),
    ("Fig. 1A and a further test, Table 1B, Supplementary Fig. 1C.", "1",
     {"A": ["Fig. 1A and a further test, Table 1B, Supplementary Fig. 1C."]}),
    ("Fig. 12A and Fig. 2 show 1A2.", "1", {}), ("Fig. 2 shows all.", "2", {}), ("", "1", {}),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_sentence_belongs_to_the_panels_it_names(mention, number, said):
    found = by_panel(mention, number)
    assert {label: [mention[a:b] for a, b in spans] for label, spans in found.items()} == said


def test_a_figures_number_is_read_or_common_to_all_its_mentions_and_never_guessed():
    stated = ("Figure 2.", "Fig. S3", "Figure 2—figure supplement 1.", "Image", None)
    assert [figure_number(label) for label in stated] == ["2", "S3", "2-s1", None, None]
    assert number_cited(["See Fig. 1 and Fig. 2A.", "As in Fig. 2B."]) == "2"
    assert number_cited(["See Fig. 1 and Fig. 2A."]) is None
    assert number_cited([]) is None and number_cited(["Nothing is cited."]) is None


def row(letters: str, scores: tuple[float, ...] = (), size: int = 10) -> list[Panel]:
    """Panels from left to right; "?" is one whose letter was not read."""
    return [
        Panel((size * n, 0, size * n + size, size), None if letter == "?" else letter, (scores or (None,) * 99)[n])
        for n, letter in enumerate(letters)
    ]


def names(panels: list[Panel], labels: str | list[str]) -> list[tuple[str, str] | None]:
    return [found and (found.label, found.method) for found in assign(panels, list(labels))]


def test_letters_count_first_in_either_case():
    assert names(row("ba"), "AB") == [("B", "read"), ("A", "read")]
    assert names(row("ax"), "AB") == [("A", "read"), ("x", "read")]


def test_unread_panels_go_by_order_where_nothing_speaks_against_it():
    assert names(row("A?C"), "ABC") == [("A", "read"), ("B", "order"), ("C", "read")]
    assert names(row("???"), "abc") == [("a", "order"), ("b", "order"), ("c", "order")]
    assert names(row("??B"), "ABC") == [None, None, ("B", "read")]
    assert names(row("??"), "ABC") == [None, None] and names(row("??"), "") == [None, None]
    assert [found.score for found in assign(row("A?"), ["A", "B"])] == [1.0, 0.8]


def test_columns_are_an_order_where_letters_say_so():
    grid = [Panel((x, y, x + 9, y + 9)) for y in (0, 10) for x in (0, 10)]
    assert names(grid, "ABCD") == [(letter, "order") for letter in "ABCD"]
    down = [grid[0], Panel(grid[1].box, "C"), grid[2], grid[3]]
    assert names(down, "ABCD") == [("A", "order"), ("C", "read"), ("B", "order"), ("D", "order")]


def test_a_letter_read_twice_counts_where_it_was_read_best():
    assert names(row("AA", (0.9, 0.4)), "AB") == [("A", "read"), ("B", "order")]
    assert names(row("AAB", (0.9, 0.9, 0.9)), "ABC") == [None, None, ("B", "read")]


def test_sides_go_by_place():
    assert names(row("??"), ["right", "left"]) == [("left", "geometry"), ("right", "geometry")]
    assert names(row("?????"), ["left", "right"]) == [None] * 5
    grid = [Panel((x, y, x + 9, y + 9)) for y in (0, 10) for x in (0, 10)]
    assert names(grid, ["top", "bottom"]) == [("top", "geometry")] * 2 + [("bottom", "geometry")] * 2
    assert names(grid, ["upper left", "upper right", "lower left", "lower right"])[2] == ("lower left", "geometry")
    assert names(row("??"), ["top", "bottom"]) == [None, None]
