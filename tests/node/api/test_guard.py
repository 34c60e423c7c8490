"""Who is let in over HTTP."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from node.api.guard import Guard


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def client(**options: object) -> TestClient:
    app = Guard(Starlette(routes=[Route("/", hello)]), **options)  # type: ignore[arg-type]
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=True)


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1:8765", "[::1]:1", "node", "LOCALHOST"])
def test_this_machine_by_any_name_is_let_in(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "[", "a b"])
def test_other_names_are_refused(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 403
    assert client(loopback_only=False).get("/", headers={"host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://[", "file://", "http://localhost.evil.example"]
)
def test_pages_of_other_origins_are_refused(origin: str) -> None:
    assert client().get("/", headers={"origin": origin}).status_code == 403


def test_a_page_of_this_machine_is_let_in() -> None:
    assert client().get("/", headers={"origin": "http://localhost:3000"}).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "secret", "bearer secret", "Bearer sécret"])
def test_the_token_must_be_right(given: str) -> None:
    assert client(token="secret").get("/", headers={"authorization": given.encode()}).status_code == 401
    assert client(token="secret").get("/").status_code == 401
    assert client(token="secret").get("/", headers={"authorization": "Bearer secret"}).status_code == 200
