"""Figures and captions found in JATS, and articles per second on one core: medloom beside pubmed_parser 0.5.

    python tests/benchmarks/jats_extraction.py [FOLDER ...] [--articles 300] [--rounds 5]

Both read the same files in turns, in one process. medloom's part is `parse_article`: the row with abstract and body,
the figures, their mentions and licences. pubmed_parser's is `parse_pubmed_xml` and `parse_pubmed_caption`; a third line
adds `parse_pubmed_paragraph`, its form of mentions. An article that raises gives nothing, and its time counts.

The files are made here from a seed, plain and in the forms that real articles have (`FORMS`), so their figures and
captions are known; of files in a FOLDER an XPath over the tree knows them. Counted is, over all figures:

    figures    those that come out at all, known by their label, else by a picture or the caption
    pictures   hrefs that come out
    captions   captions whose every letter and digit comes out in order
    invented   captions that come out for figures that have none
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import statistics
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.pmc.jats import parse_article
from infra.errors import Terminal

XLINK = "{http://www.w3.org/1999/xlink}href"
WORDS = (
    "the", "of", "in", "patient", "lesion", "contrast", "axial", "arrow", "shows", "after", "left", "lung", "lobe",
    "enhanced", "scan", "tissue", "cells", "stained", "bar", "significant", "difference", "between", "groups",
    "control", "treated", "expression", "measured", "week", "mean", "error", "magnification", "nodule",
)
NOT_CAPTION = ("fig", "supplementary-material", "object-id", "alt-text", "long-desc", "permissions", "tex-math")


@dataclass(frozen=True)
class Known:
    """A figure as it is known, or as one of the two tells it."""

    label: str
    hrefs: tuple[str, ...]
    caption: str


# articles with known answers

Form = Callable[[Known, int], str]


def _graphics(known: Known) -> str:
    return "".join(f'<graphic xlink:href="{href}"/>' for href in known.hrefs)


def _fig(known: Known, number: int, inner: str = "", id: bool = True) -> str:
    name = f' id="f{number}"' if id else ""
    return f"<fig{name}><label>{known.label}</label>{inner or f'<caption><p>{known.caption}</p></caption>'}" + (
        f"{_graphics(known)}</fig>"
    )


def _paragraphs(known: Known, number: int) -> str:
    first, *rest = known.caption.split(". ")
    parts = "".join(f"<p>{part}</p>" for part in ". ".join(rest).split(". "))
    return _fig(known, number, f"<caption><title>{first}.</title>{parts}</caption>")


def _alternatives(known: Known, number: int) -> str:
    forms = f'<graphic xlink:href="{known.hrefs[0]}"/><graphic xlink:href="{known.hrefs[0]}-thumb.gif"/>'
    caption = f"<caption><p>{known.caption}</p></caption>"
    return f'<fig id="f{number}"><label>{known.label}</label>{caption}<alternatives>{forms}</alternatives></fig>'


def _nested(known: Known, number: int) -> str:
    half = len(known.caption) // 2
    deep = f"<bold><italic>{known.caption[:half]}</italic></bold>{known.caption[half:]}"
    return _fig(known, number, f"<caption><p>{deep}</p></caption>")


def _listed(known: Known, number: int) -> str:
    rows = "".join(f"<list-item><p>{part}</p></list-item>" for part in known.caption.split(". "))
    return _fig(known, number, f"<caption><p><list>{rows}</list></p></caption>")


def _grouped(known: Known, number: int) -> str:
    inner = f'<fig id="f{number}"><label>{known.label}</label>{_graphics(known)}</fig>'
    return f"<fig-group><caption><p>{known.caption}</p></caption>{inner}</fig-group>"


def _attributes(known: Known, number: int) -> str:
    picture = f'<graphic mimetype="image" position="float" xlink:href="{known.hrefs[0]}"/>'
    caption = f"<caption><p>{known.caption}</p></caption>"
    return f'<fig id="f{number}"><label>{known.label}</label>{caption}{picture}</fig>'


def _boxed(known: Known, number: int) -> str:
    return f"<boxed-text><p>{_fig(known, number)}</p></boxed-text>"


FORMS: Mapping[str, tuple[Form, int, bool]] = {
    "plain": (_fig, 1, True),
    "title and paragraphs": (_paragraphs, 1, True),
    "marks within marks": (_nested, 1, True),
    "two pictures": (_fig, 2, True),
    "alternatives": (_alternatives, 1, True),
    "no id": (lambda known, n: _fig(known, n, id=False), 1, True),
    "no caption": (lambda known, n: _fig(known, n, "<caption/>"), 1, False),
    "a list in the caption": (_listed, 1, True),
    "caption of the group": (_grouped, 1, True),
    "href not the first attribute": (_attributes, 1, True),
    "in a box": (_boxed, 1, True),
    "no picture": (_fig, 0, True),
}
"""name -> how the figure is written, how many pictures it has, whether it has a caption"""
SHARE_NASTY = 0.5
"""Articles with a form that is not plain, one such figure each; a twentieth each has floats apart, entities of the DTD,
a sub-article with a figure, and a default namespace."""


def make_articles(folder: Path, count: int, seed: int = 0) -> dict[Path, list[Known]]:
    """Write `count` articles of about 60 kB, and say what their figures are."""
    chance = random.Random(seed)
    made = {}
    for number in range(count):
        path = folder / f"PMC{number}.nxml"
        nasty = chance.choice(list(FORMS)[1:]) if chance.random() < SHARE_NASTY else "plain"
        whole = chance.choices(["", "floats", "entities", "sub-article", "namespace"], [16, 1, 1, 1, 1])[0]
        text, known = _article(chance, number, nasty, whole)
        path.write_text(text, encoding="utf-8")
        made[path] = known
    return made


def _article(chance: random.Random, number: int, nasty: str, whole: str) -> tuple[str, list[Known]]:
    count = chance.randint(3, 6)
    forms = ["plain"] * count
    forms[chance.randrange(count)] = nasty
    known, figures = [], []
    for n, form in enumerate(forms, 1):
        write, pictures, captioned = FORMS[form]
        hrefs = tuple(f"a{number}-g{n:03}{'abc'[k]}" for k in range(pictures))
        caption = ". ".join(_sentence(chance) for _ in range(3)) + ". " + _sentence(chance) + "."
        if whole == "entities":
            caption += " TGF-&beta;"
        one = Known(f"Figure {n}", hrefs, caption if captioned else "")
        figures.append(write(one, n))
        known.append(Known(one.label, (*hrefs, f"{hrefs[0]}-thumb.gif") if form == "alternatives" else hrefs,
                           one.caption.replace("&beta;", "β")))
    paragraphs = [
        f'<p>{_sentence(chance, 90)} (<xref ref-type="fig" rid="f{chance.randint(1, count)}">Fig</xref>), '
        f'<italic>{_sentence(chance, 4)}</italic> <sup><xref ref-type="bibr" rid="b{n}">{n}</xref></sup>.</p>'
        for n in range(1, 41)
    ]
    references = "".join(_reference(chance, n) for n in range(1, 41))
    middle = "" if whole in ("floats", "sub-article") else "".join(figures)
    after = f"<floats-group>{''.join(figures)}</floats-group>" if whole == "floats" else ""
    if whole == "sub-article":
        after = f'<sub-article id="s1"><body><sec><p>Reply.</p>{"".join(figures)}</sec></body></sub-article>'
    space = ' xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/"' if whole == "namespace" else ""
    authors = "".join(
        f'<contrib contrib-type="author"><name><surname>{_sentence(chance, 1)}</surname><given-names>A{n}</given-names>'
        f'</name><xref ref-type="aff" rid="aff{n}"><sup>{n}</sup></xref></contrib>' for n in range(1, 7)
    ) + "".join(f'<aff id="aff{n}"><label>{n}</label>{_sentence(chance, 7)}</aff>' for n in range(1, 7))
    meta = (
        f'<article-id pub-id-type="pmc">{number}</article-id>'
        f'<article-id pub-id-type="pmid">{number + 10**7}</article-id>'
        f"<title-group><article-title>{_sentence(chance, 9)}</article-title></title-group>"
        f"<contrib-group>{authors}</contrib-group>"
        '<pub-date pub-type="epub"><day>7</day><month>5</month><year>2021</year></pub-date>'
        '<pub-date pub-type="collection"><year>2021</year></pub-date><permissions><license '
        'xlink:href="https://creativecommons.org/licenses/by/4.0/"><license-p>CC BY 4.0</license-p></license>'
        f"</permissions><abstract><p>{_sentence(chance, 150)}.</p></abstract>"
    )
    return (
        f'<article xmlns:xlink="http://www.w3.org/1999/xlink" article-type="research-article"{space}><front>'
        "<journal-meta><journal-title-group><journal-title>Made</journal-title></journal-title-group></journal-meta>"
        f"<article-meta>{meta}</article-meta></front><body><sec><title>Results</title>{''.join(paragraphs)}{middle}</sec>"
        f"</body><back><ref-list>{references}</ref-list></back>{after}</article>"
    ), known


def _reference(chance: random.Random, number: int) -> str:
    name = "<name><surname>{}</surname><given-names>A</given-names></name>"
    authors = "".join(name.format(_sentence(chance, 1)) for _ in range(4))
    return (
        f'<ref id="b{number}"><label>{number}</label><element-citation publication-type="journal">'
        f'<person-group person-group-type="author">{authors}</person-group>'
        f"<article-title>{_sentence(chance, 9)}</article-title><source>Made</source><year>2020</year>"
        f"<volume>{number}</volume><fpage>1</fpage><lpage>9</lpage></element-citation></ref>"
    )


def _sentence(chance: random.Random, words: int = 18) -> str:
    return " ".join(chance.choices(WORDS, k=words)).capitalize()


# what an XPath knows of other files


def known_by_xpath(path: Path) -> list[Known]:
    """Every element called fig, its graphics outside captions and formulas, and the letters of its captions."""
    from lxml import etree

    root = etree.parse(str(path), etree.XMLParser(resolve_entities=False, no_network=True)).getroot()
    beside = " or ".join(f"ancestor::*[local-name()='{name}']" for name in ("caption", "disp-formula"))
    left_out = " or ".join(f"self::{name}" for name in NOT_CAPTION)
    found = []
    for fig in root.xpath("//*[local-name()='fig']"):
        label = "".join(fig.xpath("string(*[local-name()='label'])").split())
        hrefs = [g.get(XLINK) for g in fig.xpath(f".//*[local-name()='graphic'][not({beside})]") if g.get(XLINK)]
        texts = fig.xpath(f"*[local-name()='caption']//text()[not(ancestor::*[{left_out}][ancestor::caption])]")
        found.append(Known(label, tuple(hrefs), "".join(texts)))
    return found


# the two


def by_medloom(path: Path) -> list[Known]:
    """Figures as medloom tells them; [] where the article raises."""
    try:
        article = parse_article(path.read_bytes())
    except Terminal:
        return []
    return [
        Known(f.label or "", tuple(href for picture in f.graphics for href in picture),
              " ".join(filter(None, (f.title, f.caption))))
        for f in article.figures if f.kind == "fig"
    ]


def by_pubmed_parser(path: Path, paragraphs: bool = False) -> list[Known]:
    """Figures as pubmed_parser tells them; [] where `parse_pubmed_caption` raises."""
    import pubmed_parser

    _or_nothing(lambda: pubmed_parser.parse_pubmed_xml(str(path)))
    if paragraphs:
        _or_nothing(lambda: pubmed_parser.parse_pubmed_paragraph(str(path), all_paragraph=True))
    told = _or_nothing(lambda: pubmed_parser.parse_pubmed_caption(str(path))) or []
    return [
        Known(fig["fig_label"] or "", (fig["graphic_ref"],) if fig["graphic_ref"] else (), fig["fig_caption"] or "")
        for fig in told
    ]


def _or_nothing(tell: Callable[[], Any]) -> Any:
    from lxml import etree

    try:
        return tell()
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, UnboundLocalError, etree.XMLSyntaxError):
        return None


# how well, how fast


@dataclass
class Score:
    """What came out, over all articles."""

    figures: int = 0
    pictures: int = 0
    captions: int = 0
    invented: int = 0

    def add(self, known: Sequence[Known], told: Sequence[Known]) -> None:
        """Count what is told of an article's figures."""
        left = list(told)
        for figure in known:
            match = next((one for one in left if _same(figure, one)), None)
            if match is None:
                continue
            left.remove(match)
            self.figures += 1
            self.pictures += len(set(figure.hrefs) & set(match.hrefs))
            self.captions += bool(figure.caption.strip()) and _within(_letters(figure.caption), _letters(match.caption))
            self.invented += not figure.caption.strip() and bool(match.caption.strip())


def _same(known: Known, told: Known) -> bool:
    if _letters(known.label) or _letters(told.label):
        return _letters(known.label) == _letters(told.label)
    if known.hrefs or told.hrefs:
        return bool(set(known.hrefs) & set(told.hrefs))
    return _letters(known.caption) == _letters(told.caption)


def _letters(text: str) -> str:
    """Letters and digits alone, so that neither spaces nor forms of small digits count."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text))


def _within(known: str, told: str) -> bool:
    letters = iter(told)
    return all(letter in letters for letter in known)


PARTIES: Mapping[str, Callable[[Path], list[Known]]] = {
    "medloom": by_medloom,
    "pubmed_parser": by_pubmed_parser,
    "pubmed_parser with paragraphs": lambda path: by_pubmed_parser(path, paragraphs=True),
}


def compare(known: Mapping[Path, Sequence[Known]], rounds: int) -> dict[str, tuple[Score, list[float]]]:
    """Party -> what it found, and its articles per second in each round."""
    results: dict[str, tuple[Score, list[float]]] = {name: (Score(), []) for name in PARTIES}
    for number in range(rounds):
        for name, tell in PARTIES.items():
            with contextlib.redirect_stdout(io.StringIO()):  # pubmed_parser prints what it cannot read
                start = time.perf_counter()
                told = {path: tell(path) for path in known}
                results[name][1].append(len(known) / (time.perf_counter() - start))
            if number == 0:
                for path, figures in known.items():
                    results[name][0].add(figures, told[path])
    return results


Results = Mapping[str, tuple[Score, list[float]]]


def table(title: str, known: Mapping[Path, Sequence[Known]], results: Results) -> Iterator[str]:
    """Lines to print."""
    figures = [figure for found in known.values() for figure in found]
    pictures, captions = sum(len(f.hrefs) for f in figures), sum(bool(f.caption.strip()) for f in figures)
    yield f"{title}: {len(known)} articles, {len(figures)} figures, {pictures} pictures, {captions} captions"
    own = statistics.median(results["medloom"][1])
    for name, (score, speeds) in results.items():
        speed = statistics.median(speeds)
        yield (
            f"  {name:30} figures {score.figures:5} ({score.figures / len(figures):6.1%})  "
            f"pictures {score.pictures:5} ({score.pictures / pictures:6.1%})  "
            f"captions {score.captions:5} ({score.captions / captions:6.1%})  invented {score.invented:3}  "
            f"{speed:6.0f} articles/s  medloom is {own / speed:.2f} times as fast"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of .xml and .nxml files to compare on too")
    parser.add_argument("--articles", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = make_articles(Path(scratch), args.articles)
        print(*table("made", made, compare(made, args.rounds)), sep="\n")
    for folder in args.folders:
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".xml", ".nxml")]
        real = {path: known for path in paths if (known := known_by_xpath(path))}
        print(*table(folder.name, real, compare(real, args.rounds)), sep="\n")


if __name__ == "__main__":
    main()
