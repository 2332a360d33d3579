"""The report server: what it answers, and all that it does not."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.reports import serve_reports
from infra.errors import ConfigError


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a server over one report, with something private beside the reports."""
    tmp_path = tmp_path_factory.mktemp("home")
    (tmp_path / "reports" / "000001").mkdir(parents=True)
    (tmp_path / "reports" / "000001" / "index.html").write_text("the report")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("the key")
    (tmp_path / "reports" / "out").symlink_to(tmp_path / "private")
    with serve_reports(tmp_path, 0) as url:
        yield url.removeprefix("http://")


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/000001/index.html", "/000001/"])
def test_a_report_is_answered(address: str, path: str) -> None:
    assert ask(address, path) == (200, "the report")


@pytest.mark.parametrize(
    "path",
    ["/../private/key", "/%2e%2e/private/key", "/1/../../private/key", "/out/key", "/out/", "/none", "//etc/hosts"],
)
def test_nothing_outside_the_reports_is_answered(address: str, path: str) -> None:
    status, text = ask(address, path)
    assert status == 404 and "the key" not in text and "localhost" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent(address: str, method: str) -> None:
    assert ask(address, "/000001/index.html", method)[0] == 501


def test_a_page_of_another_site_cannot_read_it(address: str) -> None:
    assert ask(address, "/000001/index.html", Host="evil.example")[0] == 421
    assert ask(address, "/000001/index.html", Host=address.replace("127.0.0.1", "localhost"))[0] == 200


def test_it_listens_on_loopback_and_a_taken_port_is_named(address: str, tmp_path: Path) -> None:
    host, _, port = address.partition(":")
    assert host == "127.0.0.1"
    with pytest.raises(ConfigError, match=f"port {port}.*another --port"), serve_reports(tmp_path, int(port)):
        pass
