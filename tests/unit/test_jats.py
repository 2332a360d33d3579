"""JATS: every figure is there whatever its nesting, licences are only what the XML says, hostile XML fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.pmc.jats import Figure, parse_article
from infra.errors import Terminal

EXAMPLE = Path(__file__).parents[2] / "flows/recipes/data/article/article.nxml"
NAMESPACES = (
    'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:ali="http://www.niso.org/schemas/ali/1.0/" '
    'xmlns:mml="http://www.w3.org/1998/Math/MathML"'
)


def article(body: str = "", meta: str = "", after: str = "", attributes: str = "") -> bytes:
    return (
        f"<article {NAMESPACES} {attributes}><front><article-meta>{meta}</article-meta></front>"
        f"<body>{body}</body>{after}</article>"
    ).encode()


def figures(body: str, after: str = "") -> tuple[Figure, ...]:
    return parse_article(article(body, after=after)).figures


def graphic(href: str) -> str:
    return f'<graphic xlink:href="{href}"/>'


def test_the_example_article() -> None:
    parsed = parse_article(EXAMPLE.read_bytes())
    assert parsed.row == {
        "article_id": "10.5555/medloom.example.1", "version": "1", "doi": "10.5555/medloom.example.1", "pmid": None,
        "title": "A simulated chest phantom with one lung nodule: an invented example", "date": "2026-11-24",
        "journal": "Examples of medloom (invented)", "keywords": ["computed tomography", "phantom", "lung nodule"],
        "licence": "CC0-1.0", "retracted": None,
        "licence_evidence": "license_ref: creativecommons.org/publicdomain/zero/1.0",
    }
    first, second = parsed.figures
    assert (first.key, first.label, first.graphics) == ("fig1", "Figure 1", (("example-g001",),))
    assert first.title == "Axial slice through the simulated chest phantom."
    assert [m.split(".")[0] for m in first.mentions] == [
        "One axial slice of 256 × 256 pixels of 1", "The nodule lies in the right lung, on the left of the image, "
        "with lung on all sides (Figure 1 and Figure 2A)",
    ]
    assert first.mentions[0].endswith("about 6.6 × 10⁴ independent values.")
    assert second.caption is not None and second.caption.startswith("(A) Magnified view")
    assert len(second.mentions) == 2


def test_figures_are_found_wherever_they_are() -> None:
    found = figures(
        f'<p>Text <fig id="in-p">{graphic("a")}</fig> goes on.</p>'
        f'<sec><fig-group id="g"><label>Fig. 2</label><caption><title>Of the group.</title></caption>'
        f'<fig id="g1">{graphic("b")}</fig><fig id="g2"><caption><p>Its own.</p></caption>{graphic("c")}</fig>'
        "</fig-group></sec>"
        f"<fig>{graphic('d')}</fig>"
        "<fig id='none'/>"
        f"<fig id='in-p'>{graphic('e')}</fig>",
        after=f'<floats-group><fig id="floats">{graphic("f")}</fig></floats-group>'
        f'<sub-article xml:lang="pt"><body><fig id="sub">{graphic("g")}</fig></body></sub-article>'
        f'<response><body><fig id="resp">{graphic("h")}</fig></body></response>',
    )
    assert [figure.key for figure in found] == ["in-p", "g1", "g2", "fig-4", "none", "fig-6", "floats", "sub", "resp"]
    assert [figure.graphics for figure in found] == [((h,),) if h else () for h in ("a", "b", "c", "d", "", *"efgh")]
    assert [figure.in_subarticle for figure in found] == [False] * 7 + [True] * 2
    assert (found[1].label, found[1].title, found[2].title, found[2].caption) == (
        "Fig. 2", "Of the group.", None, "Its own.",
    )
    assert (found[7].language, found[8].language, found[3].id) == ("pt", "en", None)


def test_graphics_are_the_figures_own_and_alternatives_are_one_picture() -> None:
    (found,) = figures(
        f'<fig><caption><p>Symbol {graphic("no")}<inline-graphic xlink:href="no"/></p></caption>'
        f"<alternatives>{graphic('full.tif')}{graphic('thumb.jpg')}</alternatives>{graphic('second')}<graphic/>"
        f"<disp-formula>{graphic('no')}</disp-formula>"
        f"<supplementary-material>{graphic('no')}</supplementary-material></fig>"
    )
    assert found.graphics == (("full.tif", "thumb.jpg"), ("second",))


def test_tables_count_only_with_an_image_of_themselves() -> None:
    found = figures(
        f"<table-wrap id='t1'><table><tr><td>{graphic('no')}</td></tr></table></table-wrap>"
        f"<table-wrap id='t2'><alternatives>{graphic('t2')}<table/></alternatives></table-wrap>"
        f"<fig-group id='g'>{graphic('own')}</fig-group>"
    )
    assert [(f.key, f.kind, f.graphics) for f in found] == [
        ("t2", "table-wrap", (("t2",),)), ("g", "fig-group", (("own",),)),
    ]


def test_captions_read_as_running_text() -> None:
    (found,) = figures(
        "<fig id='f'><caption><title>A <italic>title</italic></title><p>10<sup>5</sup> cells, CO<sub>2</sub>, "
        "10<sup>-3.5</sup>, <italic>x</italic><sup>a</sup>\n  (<bold>B</bold>)</p><p>Second.<!-- no -->"
        "<alternatives><tex-math>\\documentclass</tex-math><mml:math><mml:mi>y</mml:mi></mml:math></alternatives>"
        "<supplementary-material><caption><title>Data of it</title></caption></supplementary-material></p></caption>"
        "</fig>"
    )
    assert found.title == "A title"
    assert found.caption == "10⁵ cells, CO₂, 10^-3.5, xa (B) Second.y"


def test_mentions_are_whole_paragraphs_once_each_without_the_floats_in_them() -> None:
    one, two = figures(
        '<p>Both <xref rid="f1 f2">1, 2</xref>, again <xref rid="f1">1</xref>.'
        '<fig id="f1"><caption><p>See <xref rid="f1">itself</xref> and <xref rid="f2">2</xref>.</p></caption></fig></p>'
        '<list><list-item><p>Listed <xref rid="f1">1</xref></p></list-item></list>'
        '<p>Both <xref rid="f1">1, 2</xref>, again 1.</p><fig id="f2"/>'
    )
    assert one.mentions == ("Both 1, 2, again 1.", "Listed 1")
    assert two.mentions == ("Both 1, 2, again 1.", "See itself and 2.")


def test_ids_version_date_and_retraction() -> None:
    row = parse_article(article(meta=(
        '<article-id pub-id-type="pmcid">PMC77</article-id><article-id pub-id-type="pmcid-ver">PMC77.10</article-id>'
        '<article-id pub-id-type="doi">10.1/x</article-id><title-group><article-title>Retracted: it</article-title>'
        "</title-group>"
        '<pub-date pub-type="collection"><year>2024</year></pub-date>'
        '<pub-date pub-type="ppub"><month>Feb</month><year>2024</year></pub-date>'
        '<pub-date pub-type="epub"><day>31</day><month>1</month><year>2024</year></pub-date>'
        '<pub-date pub-type="pmc-release"><day>1</day><month>1</month><year>2024</year></pub-date>'
    ))).row
    assert (row["article_id"], row["version"], row["date"], row["retracted"]) == ("PMC77", "10", "2024-01-31", True)
    bare = parse_article(article())
    assert (bare.row["version"], bare.row["date"], bare.row["title"], bare.pmcid) == (None, None, None, None)
    assert len(str(bare.row["article_id"])) == 64, "hash of the XML"


@pytest.mark.parametrize(("day", "month", "iso"), [
    ("30", "2", "2024-02"), ("", "Summer", "2024"), ("5", "December", "2024-12-05"), ("", "", "2024"),
    ("x", "13", "2024"),
])
def test_dates_are_as_precise_as_they_are_valid(day: str, month: str, iso: str) -> None:
    date = f"<pub-date><day>{day}</day><month>{month}</month><year>2024</year></pub-date>"
    assert parse_article(article(meta=date)).row["date"] == iso


@pytest.mark.parametrize(("permissions", "code"), [
    ('<license xlink:href="http://creativecommons.org/licenses/by/4.0/"/>', "CC-BY-4.0"),
    ('<license xlink:href="https://creativecommons.org/licenses/by-nc-nd/3.0/us/deed.en"/>', "CC-BY-NC-ND-3.0-US"),
    ("<license><ali:license_ref>http://creativecommons.org/licenses/by/3.0/igo</ali:license_ref></license>",
     "CC-BY-3.0-IGO"),
    ('<license xlink:href="http://creativecommons.org/publicdomain/mark/1.0/"/>', "PUBLIC-DOMAIN"),
    ("<license><license-p>Creative Commons Attribution License, which permits use</license-p></license>", "CC-BY"),
    ("<license><license-p>under the Creative Commons Attribution Non-Commercial License</license-p></license>",
     "CC-BY-NC"),
    ("<license><license-p>a Creative Commons License (Attribution 4.0 International), CC BY 4.0</license-p></license>",
     "CC-BY-4.0"),
    ("<license><license-p>Creative Commons Attribution‐NonCommercial‐NoDerivs License</license-p></license>",
     "CC-BY-NC-ND"),
    ("<license><license-p>licensed CC BY-NC-SA 4.0</license-p></license>", "CC-BY-NC-SA-4.0"),
    ("<license><license-p>CC0 1.0</license-p></license>", "CC0-1.0"),
    ("<license><p>See <ext-link xlink:href='https://creativecommons.org/licenses/by-sa/4.0/'>it</ext-link></p></license>",
     "CC-BY-SA-4.0"),
    ("<copyright-statement>X. Open access, Creative Commons Attribution License</copyright-statement>", "CC-BY"),
    # what BioMed Central prints in every article: the data are CC0, the article is not
    ('<license xlink:href="http://creativecommons.org/licenses/by/4.0/"><license-p>The Creative Commons Public Domain '
     "Dedication waiver (http://creativecommons.org/publicdomain/zero/1.0/) applies to the data.</license-p></license>",
     "CC-BY-4.0"),
    ('<license xlink:href="http://creativecommons.org/licenses/by/4.0/"><license-p>Creative Commons Attribution '
     "NonCommercial License</license-p></license>", None),
    ("<license><license-p>All rights reserved.</license-p></license>", None),
    ('<license xlink:href=""/>', None),
    ("", None),
])
def test_licences(permissions: str, code: str | None) -> None:
    licence = parse_article(article(meta=f"<permissions>{permissions}</permissions>")).licence
    assert licence.code == code, licence


def test_unknown_licences_have_evidence() -> None:
    both = (
        '<license xlink:href="http://creativecommons.org/licenses/by/4.0/"/>'
        '<license xlink:href="http://creativecommons.org/licenses/by-nc/4.0/"/>'
    )
    assert parse_article(article(meta=f"<permissions>{both}</permissions>")).licence.evidence == (
        "contradictory: license/@xlink:href: creativecommons.org/licenses/by/4.0; "
        "license/@xlink:href: creativecommons.org/licenses/by-nc/4.0"
    )
    rights = "<permissions><license><license-p>All rights reserved.</license-p></license></permissions>"
    assert parse_article(article(meta=rights)).licence.evidence == "no known licence is named in: All rights reserved."


def test_a_figure_with_its_own_permissions_does_not_take_the_articles_licence() -> None:
    meta = '<permissions><license xlink:href="http://creativecommons.org/licenses/by/4.0/"/></permissions>'
    lent = "<permissions><copyright-statement>© Elsevier, with permission</copyright-statement></permissions>"
    own, lent_one = parse_article(article(f"<fig id='a'/><fig id='b'>{lent}</fig>", meta=meta)).figures
    assert own.licence.code == "CC-BY-4.0"
    assert (lent_one.licence.code, lent_one.licence.evidence) == (
        None, "no known licence is named in: © Elsevier, with permission",
    )


def test_named_entities_of_the_dtd_are_replaced_from_a_fixed_table() -> None:
    xml = article("<fig id='a'><caption><p>TGF-&beta; &lt; &NotEqualTilde;</p></caption></fig>")
    for document in (xml, b'<!DOCTYPE article PUBLIC "-//NLM//DTD JATS//EN" "JATS.dtd">' + xml):
        parsed = parse_article(document)
        assert (parsed.figures[0].caption, parsed.flags) == ("TGF-β < ≂̸", ("entities_replaced",))
    assert parse_article(article("<p>TGF-β &amp; &#945;</p>")).flags == ()


def test_external_entities_are_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("top secret")
    head = f'<!DOCTYPE article [<!ENTITY x SYSTEM "{secret.as_uri()}"><!ENTITY % p SYSTEM "{secret.as_uri()}"> %p;]>'
    parsed = parse_article(head.encode() + article("<fig id='a'><caption><p>See &x;</p></caption></fig>"))
    assert parsed.figures[0].caption == "See &x;"


def test_bombs_and_damaged_or_foreign_documents() -> None:
    def code(xml: bytes) -> str:
        with pytest.raises(Terminal) as caught:
            parse_article(xml)
        return caught.value.code

    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    laughs = f'<!DOCTYPE article [<!ENTITY l0 "lol">{levels}]>'.encode()
    assert code(laughs + article("<p>&l9;</p>")) == "XML_BOMB"
    assert code(article("<p>" * 300 + "</p>" * 300)) == "XML_BOMB"
    assert code(article()[:-3]) == "XML_UNREADABLE"
    assert code(b"") == "XML_UNREADABLE"
    assert code(article("<p>&nosuchentity;</p>")) == "XML_UNREADABLE"
    assert code(b"<manifest/>") == "NOT_JATS"
    assert code(b"<article><info/></article>") == "NOT_JATS", "DocBook"
    assert code(b"<pmc-articleset>" + article() * 2 + b"</pmc-articleset>") == "XML_ARTICLE_SET"


def test_sets_of_one_and_default_namespaces_are_looked_through() -> None:
    plain = article("<fig id='a'/>")
    assert parse_article(b"<pmc-articleset>" + plain + b"</pmc-articleset>").figures[0].key == "a"
    spaced = plain.replace(b"<article ", b'<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" ')
    assert parse_article(b"<record><metadata>" + spaced + b"</metadata></record>").figures[0].key == "a"


def test_every_figure_of_the_real_articles(sample_data: Path) -> None:
    from lxml import etree

    count = 0
    for path in sorted((sample_data / "pmc").rglob("*xml")):
        root = etree.parse(path).getroot()
        if root.tag not in ("article", "pmc-articleset"):
            continue
        found = [figure for figure in parse_article(path.read_bytes()).figures if figure.kind == "fig"]
        assert len(found) == len(root.findall(".//fig")), path
        assert all(figure.title or figure.caption for figure in found), path
        count += len(found)
    assert count == 123
