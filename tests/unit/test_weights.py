"""Weights: fetched only when asked for, kept only when they are what the table names, checked when they are used."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.weights import app
from infra import weights
from infra.errors import ConfigError
from infra.keys import sha256
from infra.weights import File, Weights

BODY = bytes(range(256)) * 5000


class Answers(BaseHTTPRequestHandler):
    """/good is the file, /long and /other are not, /away leads to another address."""

    def do_GET(self) -> None:
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "http://example.org/x" if self.path.endswith("far") else "/good")
            self.end_headers()
            return
        bodies = {"/good": BODY, "/long": BODY + b"x" * 10**6, "/short": BODY[:99], "/other": b"y" * len(BODY)}
        body = bodies.get(self.path)
        self.send_response(200 if body else 404)
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked has seen enough
            self.wfile.write(body or b"")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def entry(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    files = tuple(File(f"{i}.bin", url, sha256(BODY), len(BODY)) for i, url in enumerate(urls))
    table = {"some": Weights("some", "what they are", "MIT", True, files)}
    monkeypatch.setattr(weights, "table", lambda: table)


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_table_is_whole():
    assert weights.table()
    for name, each in weights.table().items():
        assert each.what and each.licence and each.name == name
        for file in each.files:
            assert file.url.startswith("https://") and len(file.sha256) == 64 and file.bytes > 0
    identities = {each.identity for each in weights.table().values()}
    assert len(identities) == len(weights.table())


def test_nothing_is_fetched_by_itself(monkeypatch, server, folder):
    entry(monkeypatch, f"{server}/good")
    with pytest.raises(ConfigError, match="medloom weights fetch some"):
        weights.locate("some")
    assert "medloom weights fetch some" in weights.missing("some")
    assert not folder.exists()


def test_what_is_fetched_is_whole_and_located(monkeypatch, server, folder):
    entry(monkeypatch, f"{server}/good", f"{server}/away")
    assert weights.fetch("some") == ["0.bin", "1.bin"]
    assert weights.locate("some") == folder / "some" and weights.missing("some") is None
    assert (folder / "some" / "1.bin").read_bytes() == BODY
    assert weights.fetch("some") == [], "what is here is not fetched again"


@pytest.mark.parametrize("path", ["long", "short", "other", "none", "away/far"])
def test_what_is_another_is_not_kept(monkeypatch, server, folder, path):
    entry(monkeypatch, f"{server}/good", f"{server}/{path}")
    with pytest.raises(ConfigError):
        weights.fetch("some")
    assert files_of(folder) == ["some/0.bin"], "its neighbour is kept, and no draft is left"


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/hostname"])
def test_only_https_is_asked(monkeypatch, folder, url):
    entry(monkeypatch, url)
    with pytest.raises(ConfigError, match="https only"):
        weights.fetch("some")


def test_a_server_that_is_not_there_is_told(monkeypatch):
    entry(monkeypatch, "http://127.0.0.1:9/x")
    with pytest.raises(ConfigError, match="--from FOLDER"):
        weights.fetch("some")


def test_a_folder_will_do_whatever_the_names(monkeypatch, folder, tmp_path):
    entry(monkeypatch, "https://example.org/never-asked")
    stick = tmp_path / "stick" / "deep"
    stick.mkdir(parents=True)
    (stick / "same size.bin").write_bytes(bytes(len(BODY)))
    with pytest.raises(ConfigError, match="no file there"):
        weights.fetch("some", tmp_path / "stick")
    assert files_of(folder) == []
    (stick / "renamed.dat").write_bytes(BODY)
    assert weights.fetch("some", tmp_path / "stick") == ["0.bin"]
    assert weights.check("some") == []
    (folder / "some" / "0.bin").unlink()
    with pytest.raises(ConfigError, match="no such folder"):
        weights.fetch("some", tmp_path / "nowhere")


def test_a_changed_file_stops_the_build_and_is_fetched_again(monkeypatch, server, folder):
    entry(monkeypatch, f"{server}/good")
    weights.fetch("some")
    (folder / "some" / "0.bin").write_bytes(BODY[:-1] + b"!")
    with pytest.raises(ConfigError, match="has the hash"):
        weights.locate("some")
    assert weights.missing("some") is None, "a look at sizes cannot tell"
    assert weights.fetch("some") == ["0.bin"] and weights.check("some") == []


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="lwnet-vessels"):
        weights.locate("lwnet-vessel")


def test_where_weights_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDLOOM_WEIGHTS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert weights.root() == tmp_path / "medloom" / "weights"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert weights.root() == Path.home() / ".local" / "share" / "medloom" / "weights"


def test_the_commands(monkeypatch, server, folder):
    entry(monkeypatch, f"{server}/good")
    run = partial(CliRunner().invoke, app)
    assert "not here" in run(["check"]).output
    assert "1 files written" in run(["fetch", "all"]).output
    assert "all files are here" in run(["fetch", "some"]).output
    assert '"here": true' in run(["list", "--format", "json"]).output
    assert run(["check"]).output == "some: whole\n"
    (folder / "some" / "0.bin").write_bytes(b"cut")
    broken = run(["check"])
    assert "3 bytes" in broken.output and isinstance(broken.exception, ConfigError)


def test_the_published_files_have_the_hashes_of_the_table(sample_data, folder):
    for name in weights.table():
        if (sample_data / "weights" / name.partition("-")[0]).exists():
            assert weights.fetch(name, sample_data / "weights")
            assert weights.locate(name) == folder / name
