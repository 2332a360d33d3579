"""What may not leave this machine, and which language an answer is in."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from llmserver import Broken, FaultServer, chat
from pydantic import BaseModel, ConfigDict

from infra.chat import Endpoint
from infra.errors import Terminal
from infra.language import language_of, other_language
from infra.llm import Client, Message, RequestCache
from infra.outbound import identifiers


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    cites: list[str] = []


@pytest.mark.parametrize("text, kinds", [
    ("write to j.doe+x@mail.example.org.", "email"), ("(555) 010-4477", "phone"), ("+49 30 901820-33", "phone"),
    ("Tel.: 030 9018 2033", "phone"), ("called at 555-010-4477", "phone"), ("0049 30 901820", "phone"),
    ("MRN 00451877", "record_number"), ("Medical record number: A-338120", "record_number"),
    ("Patient ID=7H2291", "record_number"), ("NHS number 943 476 5919", "phone"),
    ("NHS number 9434765919", "record_number"),
    ("Fallnummer: 20231177", "record_number"), ("accession # 88123-4", "record_number"),
    ("DOB: 03/11/1954", "birth_date"), ("born on 3 March 1954", "birth_date"), ("geb. am 03.11.1954", "birth_date"),
    ("Date of birth 19540311", "birth_date"), ("née le 3 mars 1954", "birth_date"),
    ("SSN 123-45-6789", "social_security"), ("DOE^JANE^M", "person_name"), ("Doe^Jane", "person_name"),
    ("Patient name: Doe", "person_name"), ("MRN 77123, a@b.example", "email record_number"),
])
def test_identifiers_are_found_and_named_by_their_kind(text, kinds):
    assert " ".join(identifiers(text)) == kinds


@pytest.mark.parametrize("text", [
    "A 3.5 x 2.1 cm mass, 45 HU, in segment 8; compare 12/2019.", "T2 TR 4000 TE 100, slice 5 mm, 512 x 512.",
    "The patient is a 54-year-old born with a cleft.", "Patient numbers were small (n = 1204).", "10^5 cells, 2^10",
    "Case no evidence of disease.", "MRN is not given.", "PMC3176119, doi 10.1371/journal.pone.0010115",
    "RR 120-130-140 over 10 minutes", "+1.5 D and +2.0 D", "003 mm", "95% CI 1.234-5.678",
    "6,200,000 people", "tel aviv cohort, call for follow-up",
    "XXXX-year-old, XXXX", "region_1 at (120, 44)-(300, 512)", "born at 32 weeks", "sha256 0123456789abcdef",
    "2019-03-11", "Dr. Smith", "1.2.840.10008.5.1.4.1.1.2",
])
def test_clinical_prose_is_let_through(text):
    assert identifiers(text) == ()


def test_strictness_and_the_callers_own_list():
    text = "Seen by Dr. Smith on 2019-03-11, number 12345678."
    assert identifiers(text, "strict") == ("full_date", "long_number", "title_name")
    assert identifiers("MRN: 00451877", "off") == ()
    private = ["Doe^Jane", "H2-91", ""]
    assert identifiers("Mrs jane DOE came", private=private) == ("private",)
    assert identifiers("see h2/91", private=private) == ("private",)
    assert identifiers("Jane came, doe-eyed", private=private) == ()


def test_a_long_text_is_scanned_in_little_time():
    for piece, times in (("a", 200_000), ("1 ", 100_000), ("1-", 100_000), ("Ab^", 60_000), ("born on ", 20_000)):
        text = piece * times
        begun = time.process_time()
        identifiers(text, "strict")
        assert time.process_time() - begun < 3


def endpoint(server: FaultServer, **settings: object) -> Endpoint:
    return Endpoint(**{"base_url": server.base_url, "model": "m", **settings})


def test_text_with_an_identifier_does_not_leave_and_is_not_repeated(monkeypatch, tmp_path):
    cache = RequestCache(tmp_path)
    asked = [Message("system", "Caption."), Message("user", "CT of DOE^JANE, MRN: 00451877")]
    with FaultServer([chat('{"text": "x"}')]) as server:
        with Client(endpoint(server), cache) as here:
            assert here.ask(asked, Caption, "any").data  # it is on this machine
        monkeypatch.setattr(Endpoint, "is_loopback", False)
        with Client(endpoint(server, seed=1), cache) as there:
            with pytest.raises(Terminal, match=r"OUTBOUND_IDENTIFIER.*person_name, record_number") as caught:
                there.ask(asked, Caption, "any")
            assert not re.search("doe|jane|0045", str(caught.value), re.IGNORECASE)
            with pytest.raises(Terminal, match="private"):
                there.ask([Message("user", "seen with Jane Doe")], Caption, "any", private=["Doe^Jane"])
        assert len(server.requests) == 1
        with Client(endpoint(server, seed=1, outbound="off"), cache) as there:
            assert there.ask(asked, Caption, "any").data


def test_few_false_alarms_on_real_text(sample_data: Path):
    """Open-i reports are de-identified (XXXX), so each alarm is false. Articles name authors' addresses."""
    reports = [
        text for path in sorted((sample_data / "reports").rglob("*.xml"))
        for text in re.findall(r"<AbstractText Label=\"\w+\">(.*?)</AbstractText>", path.read_text(), re.S)
    ]
    assert len(reports) > 100
    assert sum(bool(identifiers(text)) for text in reports) == 0
    assert sum(bool(identifiers(text, "strict")) for text in reports) == 0
    texts = [
        re.sub(r"<[^>]+>", "", paragraph) for path in sorted((sample_data / "pmc").rglob("*.*ml"))
        for paragraph in re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8", errors="replace"), re.S)
    ]
    assert sum(bool(identifiers(text)) for text in texts) <= len(texts) / 500
    wrong = [text for text in reports + texts if language_of(text) not in ("en", None)]
    assert len(wrong) <= (len(reports) + len(texts)) / 500


@pytest.mark.parametrize("text, language", [
    ("The CT of the chest shows a nodule in the left lung, and there is no effusion.", "en"),
    ("Das CT zeigt eine Läsion in der linken Lunge, kein Erguss ist zu sehen.", "de"),
    ("Le scanner montre une lésion du poumon gauche et les bronches sont normales.", "fr"),
    ("La tomografía muestra una lesión en el pulmón izquierdo con los bronquios normales.", "es"),
    ("胸部CT显示左肺结节，无胸腔积液。", "zh"),
    ("左肺に結節を認める。胸水はない。", "ja"), ("좌측 폐에 결절이 있다.", "ko"),
    ("На снимке видно образование в левом лёгком.", "ru"),
    ("No acute disease.", None), ("CT, chest, axial", None), ("", None), ("1.5 x 2 cm", None),
    ("Adenocarcinoma in situ, status post lobectomy", None),
])
def test_the_language_of_a_text(text, language):
    assert language_of(text) == language


def test_only_prose_is_held_against_the_language():
    german = "Das CT zeigt eine Läsion in der linken Lunge, kein Erguss ist zu sehen."
    assert other_language({"text": german, "ids": ["region_1"]}, "en") == "de"
    assert other_language({"text": german}, "de") is None and other_language({"text": german}, "de-AT") is None
    assert other_language({"ids": ["das", "der", "die", "und", "kein"]}, "en") is None
    assert other_language({"text": german}, "sw") is None  # a language that we cannot tell


GERMAN = chat(json.dumps({"text": "Das CT zeigt eine Läsion in der linken Lunge, kein Erguss ist zu sehen."}))
ENGLISH = chat('{"text": "The CT of the chest shows a nodule in the left lung."}')


@pytest.mark.parametrize("replies, calls", [([GERMAN, ENGLISH], 2), ([GERMAN], 3)])
def test_a_wrong_language_is_mended_or_turned_away(tmp_path, replies: list[Broken], calls):
    with FaultServer(list(replies)) as server, Client(endpoint(server), RequestCache(tmp_path)) as client:
        for _ in range(2):
            if len(replies) > 1:
                assert "nodule" in client.ask([Message("user", "CT")], Caption, "local", language="en").data.text
            else:
                with pytest.raises(Terminal, match=r"LLM_WRONG_LANGUAGE.*'de'.*'en'"):
                    client.ask([Message("user", "CT")], Caption, "local", language="en")
        assert len(server.requests) == calls and "'en'" in server.requests[1]["messages"][-1]["content"]
