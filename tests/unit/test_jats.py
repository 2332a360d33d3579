"""JATS: every figure is there whatever its nesting, licences are only what the XML says, hostile XML fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from jatsfiles import article

from connectors.pmc.jats import Figure, parse_article
from infra.errors import Terminal

EXAMPLE = Path(__file__).parents[2] / "flows/recipes/data/article/article.nxml"


def figures(body: str, after: str = "") -> tuple[Figure, ...]:
    return parse_article(article(body, after=after)).figures


def graphic(href: str) -> str:
    return f'<graphic xlink:href="{href}"/>'


def test_the_example_article() -> None:
    parsed = parse_article(EXAMPLE.read_bytes())
    text = {name: parsed.row[name] for name in ("abstract", "body")}
    assert parsed.row == {
        **text,
        "article_id": "10.5555/medloom.example.1", "version": "1", "doi": "10.5555/medloom.example.1", "pmid": None,
        "title": "A simulated chest phantom with one lung nodule: an invented example", "date": "2026-11-24",
        "journal": "Examples of medloom (invented)", "keywords": ["computed tomography", "phantom", "lung nodule"],
        "licence": "CC0-1.0", "retracted": None, "article_type": "research-article", "subjects": [],
        "licence_stated": None, "licence_agrees": None,
        "licence_evidence": "license_ref: creativecommons.org/publicdomain/zero/1.0",
    }
    assert text["abstract"].startswith("This article is an example") and "\n" not in text["abstract"]
    headings = [line for line in text["body"].split("\n\n") if not line.endswith(".")]
    assert headings == ["Methods", "Results"], "no caption, no reference"
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


def test_forms_of_one_picture_are_one_picture() -> None:
    (found,) = figures(f"<fig>{graphic('dir/f1.tif')}{graphic('F1.jpg')}{graphic('f1')}{graphic('f2')}</fig>")
    assert found.graphics == (("dir/f1.tif", "F1.jpg", "f1"), ("f2",))


def test_generated_names_never_meet_an_id() -> None:
    assert [f.key for f in figures("<fig id='fig-2'/><fig/><fig id='fig-2_'/><fig id='fig-2'/>")] == [
        "fig-2", "fig-2__", "fig-2_", "fig-4",
    ]


def test_media_count_where_they_are_pictures() -> None:
    video, image, named = figures(
        '<fig id="v"><media mimetype="video" xlink:href="v.mp4"/></fig>'
        '<fig id="i"><media mimetype="image" xlink:href="i"/></fig><fig id="n"><media xlink:href="n.PNG"/></fig>'
    )
    assert (video.graphics, image.graphics, named.graphics) == ((), (("i",),), (("n.PNG",),))


def test_pictures_outside_figures_count_if_they_have_a_caption_or_are_a_graphical_abstract() -> None:
    logo = f"<journal-title-group/>{graphic('logo')}<bio>{graphic('portrait')}</bio>"
    abstract = (
        f"<abstract><p>Plain.</p></abstract><abstract abstract-type='graphical'><title>Graphical abstract</title>"
        f"<p>{graphic('ga')}</p><p>In short.</p></abstract>"
    )
    body = (
        f"<p>An {graphic('equation')} and <inline-graphic xlink:href='inline'/></p>"
        f"<boxed-text>{graphic('box')}</boxed-text>"
        f"<p><graphic xlink:href='plate'><label>Plate 1</label><caption><p>Seen.</p></caption></graphic></p>"
        f"<chem-struct-wrap id='c'><label>1</label>{graphic('structure')}</chem-struct-wrap>"
        f"<fig id='f'><chem-struct-wrap>{graphic('in-f')}</chem-struct-wrap></fig><bio>{graphic('portrait')}</bio>"
    )
    found = parse_article(article(body, meta=f"{logo}{abstract}")).figures
    assert [(f.key, f.kind, f.graphics[0][0], f.label, f.title, f.caption) for f in found] == [
        ("graphic-1", "graphic", "ga", None, "Graphical abstract", "In short."),
        ("graphic-2", "loose", "equation", None, None, None),
        ("graphic-3", "loose", "box", None, None, None),
        ("graphic-4", "graphic", "plate", "Plate 1", None, "Seen."),
        ("c", "loose", "structure", "1", None, None),
        ("f", "fig", "in-f", None, None, None),
    ]


def test_captions_are_the_figures_own_and_the_groups_beside_them() -> None:
    found = figures(
        "<fig-group><caption><title>Scans.</title><p>All.</p></caption>"
        "<fig id='a'><caption><p>Own.</p></caption></fig>"
        f"<fig id='b'>{graphic('b')}</fig></fig-group>"
        "<fig id='c'><graphic xlink:href='c'><caption><p>Of the picture.</p></caption></graphic></fig>"
        "<fig id='d'><p>A paragraph.</p><legend><p>A bar.</p></legend></fig>"
    )
    assert [(f.key, f.title, f.caption, f.group_caption) for f in found] == [
        ("a", None, "Own.", "Scans. All."), ("b", "Scans.", "All.", None), ("c", None, "Of the picture.", None),
        ("d", None, "A paragraph. A bar.", None),
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


@pytest.mark.parametrize("text", [
    'Figs. <xref rid="f2">2</xref>–<xref rid="f4">4</xref>', 'Figs <xref rid="f2">2A</xref> to <xref rid="f4">4</xref>',
    '<xref rid="f2">Fig. 2</xref>B-Fig. <xref rid="f4">4C</xref>', '<xref rid="f2">Figs. 2–4</xref>',
    '<xref rid="f2 f4">Figs. 2 - 4</xref>',
])
def test_a_range_mentions_what_lies_in_it(text: str) -> None:
    floats = "".join(f"<fig id='f{n}'><label>Figure {n}.</label></fig>" for n in range(1, 6))
    found = figures(f"<p>{text}</p>{floats}<fig id='s3'><label>Figure S3</label></fig><fig id='none'/>")
    assert [bool(figure.mentions) for figure in found] == [False, True, True, True, False, False, False]


@pytest.mark.parametrize("text", [
    '<xref rid="f2">2</xref>, <xref rid="f4">4</xref>', '<xref rid="f2">2</xref> and <xref rid="f4">4</xref>',
    '<xref rid="f2">2</xref>–<xref rid="t4">4</xref>', '<xref rid="f4">4</xref>–<xref rid="f2">2</xref>',
    '<xref rid="b2">2</xref>–<xref rid="f4">4</xref>', '<xref rid="f2">2</xref>, panels 1–4',
])
def test_what_is_no_range_mentions_nothing_between(text: str) -> None:
    floats = "".join(f"<fig id='f{n}'><label>Figure {n}</label></fig>" for n in (2, 3, 4))
    found = figures(f"<p>{text}</p>{floats}<table-wrap id='t4'><label>Table 4</label>{graphic('t')}</table-wrap>")
    assert not found[1].mentions


def test_mentions_in_and_of_other_parts() -> None:
    own, other = figures(
        '<p>Here <xref rid="f1">1</xref>.</p><fig id="f1"/>',
        after='<sub-article><body><p>There <xref rid="f1">1</xref>.</p><fig id="f1"/></body></sub-article>'
        '<response><body><p>Reply <xref rid="f1">1</xref>.</p></body></response>',
    )
    assert (own.mentions, other.mentions) == (("Here 1.", "Reply 1."), ("There 1.",))
    review = '<sub-article><body><p>On <xref rid="f1">1</xref>.</p></body></sub-article>'
    (asked,) = figures('<fig id="f1"/>', after=review)
    assert asked.mentions == ("On 1.",), "a reviewer speaks of the article's figure"


def test_body_and_abstract_are_the_text_alone() -> None:
    row = parse_article(article(
        "<p>First.</p><sec><title>One</title><p>A <xref rid='f'>1</xref>."
        "<fig id='f'><caption><p>No</p></caption></fig></p>"
        "<sec><title>Two</title><list><list-item><p>Item</p></list-item></list><table-wrap><table><tr><td>No</td></tr>"
        "</table></table-wrap><disp-quote><p>Said.</p></disp-quote></sec></sec><sec><title>Empty</title>"
        "<supplementary-material><caption><p>No</p></caption></supplementary-material></sec><!-- no -->",
        meta="<article-categories><subj-group><subject>A</subject><subj-group><subject>B</subject></subj-group>"
        "</subj-group><subj-group><subject>A</subject></subj-group></article-categories>"
        "<abstract abstract-type='graphical'><p>No</p></abstract><abstract><title>Abstract</title><sec><title>Aim"
        "</title><p>To see.</p></sec><sec><title>Result</title><p>Seen.</p></sec></abstract>"
        "<abstract abstract-type='teaser'><p>No</p></abstract>",
        after="<back><ref-list><ref><mixed-citation>No</mixed-citation></ref></ref-list></back>"
        "<sub-article><body><p>No</p></body></sub-article>", attributes='article-type="case-report"',
    )).row
    assert row["body"] == "First.\n\nOne\n\nA 1.\n\nTwo\n\nItem\n\nSaid."
    assert row["abstract"] == "Aim To see. Result Seen."
    assert (row["article_type"], row["subjects"]) == ("case-report", ["A", "B"])
    typed = parse_article(article(meta="<abstract abstract-type='web-summary'><p>No</p></abstract>"
                                       "<abstract abstract-type='structured'><p>Yes</p></abstract>")).row
    assert typed["abstract"] == "Yes"
    assert parse_article(article()).row["body"] is None


@pytest.mark.parametrize(("attributes", "meta", "retracted"), [
    ("", '<related-article related-article-type="retraction-forward"/>', True),
    ("", "<title-group><article-title>Retracted Article: It</article-title></title-group>", True),
    ("", '<pub-history><event event-type="retracted"/></pub-history>', True),
    ("", '<history><date date-type="retracted"/></history>', True),
    ('article-type="retraction"', '<related-article related-article-type="retracted-article"/>', None),
    ('article-type="retraction"', "<title-group><article-title>Retracted: It</article-title></title-group>", None),
    ("", '<related-article related-article-type="corrected-article"/>', None),
])
def test_the_retracted_article_is_retracted_and_its_notice_is_not(
    attributes: str, meta: str, retracted: bool | None
) -> None:
    assert parse_article(article(meta=meta, attributes=attributes)).row["retracted"] is retracted


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
