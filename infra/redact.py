"""Secrets kept out of text: what this process knows as secret, and what has the form of a secret, becomes `***`.

The invariant: no value that the process holds as a secret leaves `text`, `scrub` or `leaving`: not whole, nor quoted
for a URL, for JSON or by repr, nor as base64, nor cut off after its first letters. What is secret is read from the
environment at every call, so it holds in a Ray worker as in the driver: variables whose names say so (…_KEY, …_TOKEN,
…PASSWORD…), those that MEDLOOM_SECRETS names (with commas between), the files that …_FILE variables name, passwords
inside addresses, ~/.pgpass and the AWS credentials file; and what `know` was told.

Values of fewer than six letters are not looked for: `test` as a password would blank half of every log.

>>> os.environ["REPORTS_TOKEN"] = "cafe-0123-4567"
>>> text("GET http://ada:lovelace@db/x with cafe-0123-4567 failed")
'GET http://***@db/x with *** failed'
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MARK = "***"
NAMES = "MEDLOOM_SECRETS"
LEAST = 6
"""Letters of the shortest value that is looked for."""
PREFIX = 12
"""First letters of a long secret by which a cut-off one is known."""
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:KEY|KEYS|APIKEY|SECRET|SECRETS|TOKEN|TOKENS|PASSWORD|PASSWD|PASSPHRASE|PGPASSWORD|CREDENTIAL|"
    r"CREDENTIALS|AUTH_STRING|WEBHOOK|WEBHOOKS|WEBHOOK_URL|COOKIE|DSN)(?:_ID|_URL|_FILE|_PATH|_VALUE)?$", re.IGNORECASE
)
_HEADERS_NAME = re.compile(r"_HEADERS$", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/@:'\"<>]*:([^\s/@'\"<>]+)@", re.IGNORECASE)
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, flags), put) for pattern, put, flags in (
        # user and password of an address (RFC 3986, 3.2.1)
        (r"\b([a-z][a-z0-9+.-]*://)[^\s/@'\"<>]+@", rf"\1{MARK}@", re.IGNORECASE),
        # credentials of HTTP (RFC 9110, 11.4; RFC 6750)
        (r"\b(bearer|basic)\s+(?=[a-z._~+/-]*[0-9=])[a-z0-9._~+/=-]{6,}", rf"\1 {MARK}", re.IGNORECASE),
        (r"\b(authorization['\"]?\s*[:=]\s*['\"]?(?:token\s+)?)(?!bearer\b|basic\b|\*\*\*)[^\s'\",;&)}\]]{6,}",
         rf"\1{MARK}", re.IGNORECASE),
        (r"\b(x-api-key|api-key|set-cookie|cookie|x-amz-security-token)(['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]{4,}",
         rf"\1\2{MARK}", re.IGNORECASE),
        # what signs a presigned address
        (r"\b(x-amz-(?:signature|credential|security-token)|sig|signature)=[^\s&'\"]+", rf"\1={MARK}", re.IGNORECASE),
        (r"\b(password|passwd|secret|client_secret|api_?key|access_?key|secret_access_key|auth_?token|access_token)"
         r"(['\"]?\s*[:=]\s*['\"]?)(?!\*\*\*|null\b|none\b|true\b|false\b)[^\s'\",;&)}\]]{4,}",
         rf"\1\2{MARK}", re.IGNORECASE),
        # keys that are known by their first letters
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", MARK, 0),
        (r"\b(?:sk|pk|rk)-(?:[a-z]+-)*[A-Za-z0-9_-]{16,}", MARK, 0),
        (r"\b(?:ghp|gho|ghs|ghu|hf|glpat|xox[abprs]|pnu|pnb)[_-][A-Za-z0-9_-]{16,}", MARK, 0),
        (r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*", MARK, 0),
        (r"https://hooks\.slack\.com/[^\s'\"<>]+|https://discord(?:app)?\.com/api/webhooks/[^\s'\"<>]+|"
         r"https://[^\s/'\"<>]*webhook\.office\.com/[^\s'\"<>]+", MARK, 0),
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MARK, re.DOTALL),
    )
)
_told: set[str] = set()


class Scrubbed(Exception):
    """Stands for an error whose own words hold a secret and cannot be changed."""


def know(*values: str | None) -> None:
    """Take values for secrets from now on, in this process: what a recipe's own variable names hold, or a file."""
    _told.update(value for value in values if value and len(value) >= LEAST)


def names() -> frozenset[str]:
    """Variables that hold secrets though their names do not say so."""
    return frozenset(filter(None, os.environ.get(NAMES, "").split(",")))


def also(more: Iterable[str]) -> None:
    """Count these variables among those that hold secrets, in this process and in those it starts."""
    if new := set(more) - names():
        os.environ[NAMES] = ",".join(sorted(names() | new))


def named_in(value: Any) -> Iterator[str]:
    """The variables that a recipe, or anything of models, mappings and lists, names in fields such as `api_key_env`."""
    if isinstance(value, Mapping):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    else:
        inner = vars(value).items() if hasattr(type(value), "model_fields") else ()
    for name, one in inner:
        if isinstance(one, str):
            if str(name).endswith("_env"):
                yield one
        else:
            yield from named_in(one)


def text(words: str) -> str:
    """The words without secrets: those that are known, and what has the form of one."""
    pattern = _pattern(secrets())
    words = pattern.sub(MARK, words) if pattern else words
    for pattern, put in _FORMS:
        words = pattern.sub(put, words)
    return words


def known(words: str) -> str:
    """The words without the secrets that are known by value, where those are no plain words: for what becomes rows."""
    pattern = _pattern(_strong(secrets()))
    return pattern.sub(MARK, words) if pattern else words


def holds(words: str) -> bool:
    """Whether a known secret that is no plain word stands in the words."""
    pattern = _pattern(_strong(secrets()))
    return bool(pattern and pattern.search(words))


def trace(error: BaseException) -> str:
    """The traceback of an error, as text without secrets."""
    return text("".join(traceback.format_exception(error)))


def scrub(error: BaseException) -> None:
    """Take secrets out of an error in place: of its words, its notes, and all errors it came from."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        args = tuple(map(_clean, one.args))
        if any(new is not old for new, old in zip(args, one.args, strict=True)):
            one.args = args
        slots = {name: getattr(one, name) for name in ("strerror", "filename") if isinstance(one, OSError)}
        for name, value in {**slots, **getattr(one, "__dict__", {})}.items():
            if (new := _clean(value)) is not value:
                setattr(one, name, new)
        left += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]


@contextmanager
def leaving() -> Iterator[None]:
    """Whatever error leaves the block leaves it without secrets, and keeps its type where it can.

    Raises Scrubbed in place of an error whose words are not its own to change (a ValidationError quotes its input).
    """
    try:
        yield
    except BaseException as error:
        scrub(error)
        if text(said := str(error)) != said:
            raise Scrubbed(f"{type(error).__name__}: {text(said)}") from None
        raise


def _clean(value: object) -> object:
    """The value itself, or where it has a secret, one without."""
    if isinstance(value, str):
        new = text(value)
        return value if new == value else new
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        cleaned = [_clean(inner) for inner in value]
        return type(value)(cleaned) if any(a is not b for a, b in zip(cleaned, value, strict=True)) else value
    return value


def secrets() -> frozenset[str]:
    """Every value that this process holds as a secret, as it stands now."""
    return _from(tuple(sorted(os.environ.items()))) | _told


@lru_cache(maxsize=8)
def _from(environment: tuple[tuple[str, str], ...]) -> frozenset[str]:
    values = dict(environment)
    found: set[str] = set()
    told = set(values.get(NAMES, "").split(","))
    for name, value in environment:
        found.update(map(unquote, _IN_ADDRESS.findall(value)))
        found.update(_IN_ADDRESS.findall(value))
        if _HEADERS_NAME.search(name):  # NAME=VALUE,NAME=VALUE, of OpenTelemetry
            found.update(word for pair in value.split(",") for word in unquote(pair.partition("=")[2]).split())
        if not (_SECRET_NAME.search(name) or name in told or name.removesuffix("_FILE") in told):
            continue
        if name.upper().endswith(("_FILE", "_PATH")):
            found.update(_lines(value))
        elif not _IN_ADDRESS.search(value):
            found.add(value)
    home = Path(values.get("HOME") or "/nonexistent")
    found.update(_aws(Path(values.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")))
    found.update(_pgpass(Path(values.get("PGPASSFILE") or home / ".pgpass")))
    return frozenset(value for value in found if len(value) >= LEAST)


def _lines(path: str) -> Iterable[str]:
    """The lines of a small file that holds a secret; none where it cannot be read."""
    return _read(Path(path).expanduser()).split()


@cache
def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size < 1 << 16 else ""
    except OSError:
        return ""


def _aws(path: Path) -> Iterator[str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(_read(path))
    except configparser.Error:
        return
    for section in parser.sections():
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            yield parser.get(section, name, fallback="").strip()


def _pgpass(path: Path) -> Iterator[str]:
    """Passwords of HOST:PORT:DATABASE:USER:PASSWORD, where a backslash keeps a colon (PostgreSQL 17, 32.16)."""
    for line in _read(path).splitlines():
        parts = re.split(r"(?<!\\):", line)
        if not line.startswith("#") and len(parts) == 5:
            yield parts[4].replace("\\:", ":").replace("\\\\", "\\")


@lru_cache(maxsize=8)
def _strong(values: frozenset[str]) -> frozenset[str]:
    """Secrets that cannot stand in prose by chance: of eight letters or more, and no plain word."""
    return frozenset(v for v in values if len(v) >= 8 and not (v.isalpha() and v[1:].islower()))


@lru_cache(maxsize=16)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    """What finds the values in all their forms, longest first."""
    forms: set[str] = set()
    cut: set[str] = set()
    for value in values:
        forms |= {
            value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1], base64.b64encode(value.encode()).decode().rstrip("="),
        }
        if len(value) >= PREFIX + 4 and "://" not in value:
            cut.add(value[:PREFIX])
    whole = [re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form))]
    begun = [rf"{re.escape(form)}[\w+/=.~-]*" for form in sorted(cut)]
    return re.compile("|".join([*whole, *begun])) if whole else None


def shown_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for people to look at: secrets are marked, by name or by value."""
    told = names()
    return {
        name: MARK if (_SECRET_NAME.search(name) or name in told) and not name.endswith(("_FILE", "_PATH"))
        else text(value) for name, value in sorted(environment.items())
    }
