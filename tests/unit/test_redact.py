"""Planted secrets never come out of text, errors and tracebacks; what is not secret stays as it was."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from pydantic import BaseModel, ValidationError

from infra import redact
from infra.errors import ConfigError, Transient

LLM = "sk-planted/0815+never=seen&9"
PASSWORD = "pa ss:w@rd\"Ü-1234"
FORMS = (
    str, repr, json.dumps, lambda s: quote(s, safe=""), quote_plus, lambda s: base64.b64encode(s.encode()).decode(),
    lambda s: f"x{s}y", lambda s: s[:14], lambda s: f"{s[:13]}… and more",
)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", LLM)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(redact, "_told", set())
    return tmp_path


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("secret", [LLM, PASSWORD])
def test_a_secret_is_found_in_all_its_forms(form: int, secret: str) -> None:
    written = FORMS[form](secret)
    said = redact.text(f"the server said: {written}; go on")
    assert secret[: redact.PREFIX] not in said and written not in said
    assert said.startswith("the server said: ") and said.endswith("; go on") and "***" in said
    assert redact.holds(written)


@pytest.mark.parametrize(("name", "value", "secret"), [
    ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7", "wJalrXUtnFEMI/K7"),
    ("AWS_ACCESS_KEY_ID", "planted-id-42", "planted-id-42"),
    ("AWS_SESSION_TOKEN", "FwoGZXIvYXdzEBY", "FwoGZXIvYXdzEBY"),
    ("MEDLOOM_DEID_KEY", "pseudonym-secret-1", "pseudonym-secret-1"),
    ("MEDLOOM_WEBHOOK_URL", "https://chat.example/hook/T0/B1/zzz", "https://chat.example/hook/T0/B1/zzz"),
    ("PREFECT_SERVER_API_AUTH_STRING", "admin:hunter2hunter2", "admin:hunter2hunter2"),
    ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://ada:lovelace%401@db:5432/x", "lovelace%401"),
    ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://ada:lovelace%401@db:5432/x", "lovelace@1"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20otel-token-77,x=1", "otel-token-77"),
    ("RAY_AUTH_TOKEN", "0123456789abcdef0123", "0123456789abcdef0123"),
], ids=itertools.count())  # pytest puts an id into the environment
def test_variables_that_hold_secrets_are_known_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert redact.known(f"<{secret}>") == f"<{secret}>"
    monkeypatch.setenv(name, value)
    assert redact.known(f"<{secret}>") == "<***>"


def test_variables_that_a_recipe_names_hold_secrets_here_and_in_what_is_started(
    monkeypatch: pytest.MonkeyPatch, planted: Path
) -> None:
    class Judge(BaseModel):
        api_key_env: str | None = "GOLD"
        other_env: str | None = None

    class Stage(BaseModel):
        judge: Judge = Judge()
        options: dict[str, object] = {"a": [{"token_env": "SILVER"}], "n": 1}

    monkeypatch.setenv("MEDLOOM_SECRETS", "MINE")
    for name in ("GOLD", "MINE"):
        monkeypatch.setenv(name, f"{name.lower()}-value-0")
    (planted / "silver").write_text("silver-value-0\n")
    monkeypatch.setenv("SILVER_FILE", str(planted / "silver"))
    assert redact.text("gold-value-0 silver-value-0 mine-value-0") == "gold-value-0 silver-value-0 ***"
    redact.also(redact.named_in((Stage(),)))
    assert redact.names() == {"GOLD", "SILVER", "MINE"}
    assert redact.text("gold-value-0 silver-value-0 mine-value-0") == "*** *** ***"


def test_a_password_that_is_a_plain_word_blanks_logs_but_no_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_PASSWORD", "radiology")
    assert redact.text("login with radiology failed") == "login with *** failed"
    assert redact.known("a radiology report") == "a radiology report" and not redact.holds("a radiology report")


def test_files_that_hold_secrets_are_read(monkeypatch: pytest.MonkeyPatch, planted: Path) -> None:
    (planted / "key").write_text("key-in-a-file\n")
    monkeypatch.setenv("SITE_API_KEY_FILE", str(planted / "key"))
    (planted / ".pgpass").write_text("# a comment\ndb:5432:*:ada:pg\\:pass-77\n")
    (planted / "aws").write_text("[one]\naws_secret_access_key = aws/secret/77\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(planted / "aws"))
    redact._from.cache_clear()
    said = redact.text("key-in-a-file pg:pass-77 aws/secret/77 and SITE_API_KEY_FILE")
    assert said == "*** *** *** and SITE_API_KEY_FILE"


def test_what_a_recipe_calls_by_a_name_of_its_own_is_known_once_told() -> None:
    assert redact.known("gold-token-1") == "gold-token-1"
    redact.know("gold-token-1", None, "tiny")
    assert redact.known("gold-token-1 tiny") == "*** tiny"


@pytest.mark.parametrize(("said", "clean"), [
    ("GET http://ada:lovelace@db/x", "GET http://***@db/x"),
    ("s3://key@bucket", "s3://***@bucket"),
    ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
    ("{'authorization': 'Basic YWRhOmxvdmU='}", "{'authorization': 'Basic ***'}"),
    ("x-api-key: 0123456789", "x-api-key: ***"),
    ("PUT /k?X-Amz-Signature=ab12&X-Amz-Date=1", "PUT /k?X-Amz-Signature=***&X-Amz-Date=1"),
    ("connect(password='open sesame', host='db')", "connect(password='*** sesame', host='db')"),
    ("AKIAIOSFODNN7EXAMPLE is not valid", "*** is not valid"),
    ("Incorrect API key provided: sk-proj-abcdefghijklmnopqrst.", "Incorrect API key provided: ***."),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", "***\nend"),
    ("https://hooks.slack.com/services/T0/B0/xyz answered 500", "*** answered 500"),
])
def test_what_has_the_form_of_a_secret_goes(said: str, clean: str) -> None:
    assert redact.text(said) == clean
    assert redact.text(clean) == clean


@pytest.mark.parametrize("said", [
    "a basic approach; the bearer of the token was asked", "key points: the lesion lies in the upper pole",
    "http://127.0.0.1:4200/api refused the connection", "s3://bucket/a@b/c.png", "sample sk-1 of task-based imaging",
    "api_key_env: OPENAI_API_KEY is not set", "secret: null", "12 tokens of 30, token budget 5",
    "File \"/home/ada/x.py\", line 3, in call", "ada@example.org wrote",
])
def test_plain_words_stay(said: str) -> None:
    assert redact.text(said) == said


def _raise(error: Exception) -> None:
    try:
        raise ValueError(f"cause {LLM}")
    except ValueError as cause:
        raise error from cause


def test_an_error_leaves_without_its_secrets_and_keeps_its_type() -> None:
    error = Transient("LLM_UNREACHABLE", f"said {LLM}", 3.0)
    error.add_note(f"note {LLM}")
    with pytest.raises(Transient) as caught, redact.leaving():
        _raise(error)
    written = "".join(traceback.format_exception(caught.value))
    assert LLM not in written and LLM not in str(pickle.dumps(caught.value))
    assert caught.value is error and error.message == "said ***" and error.retry_after == 3.0
    assert "cause ***" in written and "note ***" in written


def test_errors_that_hold_many_are_scrubbed_through() -> None:
    group = ExceptionGroup("two", [KeyError(LLM), OSError(2, f"no {LLM}", f"/x/{LLM}")])
    with pytest.raises(ExceptionGroup) as caught, redact.leaving():
        raise group
    assert LLM not in "".join(traceback.format_exception(caught.value))
    assert [type(e) for e in caught.value.exceptions] == [KeyError, FileNotFoundError]


def test_an_error_whose_words_are_not_its_own_is_replaced() -> None:
    class Form(BaseModel):
        number: int

    with pytest.raises(redact.Scrubbed) as caught, redact.leaving():
        Form(number=LLM)  # type: ignore[arg-type]
    assert "ValidationError" in str(caught.value) and LLM not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValidationError), redact.leaving():
        Form(number="many")  # type: ignore[arg-type]


def test_an_error_without_secrets_is_let_through_untouched() -> None:
    error = ConfigError("no such recipe", {"a": 1})
    before = error.args
    with pytest.raises(ConfigError), redact.leaving():
        raise error
    assert error.args is before


def test_a_trace_is_text_without_secrets() -> None:
    try:
        _raise(RuntimeError(f"bug {LLM}"))
    except RuntimeError as error:
        written = redact.trace(error)
    assert LLM not in written and "RuntimeError: bug ***" in written and "_raise" in written


def test_an_environment_is_shown_without_values_that_are_secret() -> None:
    shown = redact.shown_environment({"A_TOKEN": "x", "KEY_FILE": "/run/key", "URL": "http://a:b@c", "LANG": "C"})
    assert shown == {"A_TOKEN": "***", "KEY_FILE": "/run/key", "LANG": "C", "URL": "http://***@c"}
