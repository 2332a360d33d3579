"""Licences of articles and figures: only what is stated; silence and contradiction are unknown, and never open."""

from __future__ import annotations

import pytest
from jatsfiles import article

from connectors.pmc.articles import with_stated_licence
from connectors.pmc.jats import parse_article


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


CC_BY = '<permissions><license xlink:href="https://creativecommons.org/licenses/by/4.0/"/></permissions>'
RESERVED = "<permissions><license><license-p>All rights reserved.</license-p></license></permissions>"
NOTICE = "<permissions><copyright-statement>© 2024 The Authors</copyright-statement></permissions>"


@pytest.mark.parametrize(("meta", "code", "licence", "stated", "agrees"), [
    (CC_BY, "CC BY", "CC-BY-4.0", "CC-BY", True),
    (CC_BY, None, "CC-BY-4.0", None, None),
    (CC_BY, "NO-CC CODE", "CC-BY-4.0", None, None),
    (CC_BY, "CC BY-NC", None, "CC-BY-NC", False),
    (CC_BY, "TDM", None, "LicenseRef-PMC-TDM", False),
    ("", "CC BY-NC-ND", "CC-BY-NC-ND", "CC-BY-NC-ND", None),
    (NOTICE, "CC0", "CC0-1.0", "CC0-1.0", None),
    ("", "TDM", "LicenseRef-PMC-TDM", "LicenseRef-PMC-TDM", None),
    ("", "Crown, 3", "LicenseRef-PMC-Crown-3", "LicenseRef-PMC-Crown-3", None),
    (RESERVED, "CC BY", None, "CC-BY", None),
    ("", None, None, None, None),
])
def test_the_archives_licence_beside_the_articles(
    meta: str, code: str | None, licence: str | None, stated: str | None, agrees: bool | None
) -> None:
    own = "<permissions><copyright-statement>© Elsevier, with permission</copyright-statement></permissions>"
    parsed = with_stated_licence(parse_article(article(f"<fig id='a'/><fig id='b'>{own}</fig>", meta=meta)), code)
    row = parsed.row
    assert (row["licence"], row["licence_stated"], row["licence_agrees"]) == (licence, stated, agrees)
    assert [parsed.licence.code, *(figure.licence.code for figure in parsed.figures)] == [licence, licence, None]
    if stated and licence != "CC-BY-4.0":
        assert f"metadata: license_code {code}" in row["licence_evidence"]
    if agrees is False:
        assert row["licence_evidence"].startswith("contradictory: license/@xlink:href: creativecommons.org/licenses/by")
