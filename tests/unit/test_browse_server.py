"""The server of `medloom browse`: loopback only, a secret address, no other site's requests, headers on all answers."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from makehome import make_home

from catalog.browse.pages import Dataset
from catalog.decisions import read
from flows.browse import serve_pages
from infra.errors import ConfigError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("served"), per_modality=1)


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with serve_pages(Dataset(home), 0) as served:
        yield served


def ask(
    address: str, path: str | None = None, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, place.path if path is None else path, body, told)
    response = connection.getresponse()
    return response, response.read()


def test_it_answers_on_loopback_to_its_own_name_with_the_token(address: str) -> None:
    place = urlsplit(address)
    assert place.hostname == "127.0.0.1" and len(place.path.strip("/")) >= 32
    assert ask(address)[0].status == 200
    assert ask(address, Host=f"localhost:{place.port}")[0].status == 200
    response, _ = ask(address, place.path.rstrip("/"))
    assert (response.status, response.headers["Location"]) == (302, place.path)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1.evil.example:1", "[::1]:80", ""])
def test_another_name_is_refused(address: str, host: str) -> None:
    assert ask(address, Host=host)[0].status == 421


@pytest.mark.parametrize("path", ["/", "/x/", "//", "/browse.css", "/%2e%2e/", "/x?a=%ff"])
def test_without_the_token_nothing_is_told(address: str, path: str) -> None:
    response, body = ask(address, path)
    assert response.status == 403 and b"snapshot" not in body


@pytest.mark.parametrize("line", [b"GET http://[/ HTTP/1.1", b"GET /\xc3\xa9/ HTTP/1.1", b"GET x HTTP/1.1"])
def test_an_odd_request_line_is_refused_and_stops_nothing(address: str, line: bytes) -> None:
    place = urlsplit(address)
    with socket.create_connection(("127.0.0.1", place.port or 0), timeout=30) as open_socket:
        open_socket.sendall(line + b"\r\nHost: 127.0.0.1:%d\r\n\r\n" % (place.port or 0))
        assert open_socket.recv(64).startswith(b"HTTP/1.0 403")
    assert ask(address)[0].status == 200


def test_every_answer_carries_the_headers(address: str) -> None:
    for path in (None, "/", urlsplit(address).path + "browse.js", urlsplit(address).path + "none"):
        headers = ask(address, path)[0].headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin" and headers["Server"].strip() == "medloom"


def test_only_a_page_of_this_server_may_post(address: str, home: Path) -> None:
    place = urlsplit(address)
    own = {"Origin": f"http://127.0.0.1:{place.port}", "Content_Type": "application/json"}
    body = json.dumps({"name": "Ada"}).encode()

    def status(path: str = "reviewer", data: bytes = body, **changed: str) -> int:
        return ask(address, place.path + path, "POST", data, **own | changed)[0].status

    assert status() == 200
    assert status(Origin="http://evil.example") == status(Origin="null") == status(Origin="") == 403
    assert status(Origin=f"http://localhost:{place.port}") == 403
    assert status(Content_Type="text/plain") == status(Content_Type="application/x-www-form-urlencoded") == 415
    assert status(data=b"x" * 100_001) == 413
    assert status("sample") == 404 and ask(address, place.path, "DELETE")[0].status == 501
    response, _ = ask(address, place.path + "reviewer", "POST", body, **own)
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Ada" not in cookie
    assert status("decide", b"{}") == 401 and status("decide", b"{}", Cookie="medloom_reviewer=<b>") == 401
    assert status("decide", b"{}", Cookie=cookie.partition(";")[0]) == 409
    assert read(home) == []


def test_a_taken_port_is_told(address: str, home: Path) -> None:
    with pytest.raises(ConfigError, match="choose another --port"), serve_pages(Dataset(home), urlsplit(address).port):
        pass
