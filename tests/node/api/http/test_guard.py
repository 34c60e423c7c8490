"""Who is let in over HTTP."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from node.api.http.guard import Door, Guard


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def client(**options: object) -> TestClient:
    app = Guard(Starlette(routes=[Route("/", hello, methods=["GET", "POST"])]), Door(**options))  # type: ignore[arg-type]
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=True)


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1:8765", "[::1]:1", "LOCALHOST"])
def test_this_machine_by_any_name_is_let_in(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "[", "a b", "", "node", "node:8765"),
        *(
            "evil@localhost",
            "localhost#x",
            "localhost/x",
            "localhost?x",
            "localhost:80:80",
            "localhost:",
            "local\\host",
        ),
    ],
)
def test_other_names_are_refused_with_the_setting_that_allows_them(host: str) -> None:
    reply = client().get("/", headers={"host": host})
    assert reply.status_code == 403
    assert "--allow-host" in reply.json()["error"]["message"]


def test_a_name_that_the_owner_lists_is_let_in() -> None:
    named = client(hosts=frozenset({"host.docker.internal", "0.0.0.0"}))
    assert named.get("/", headers={"host": "host.docker.internal:8765"}).status_code == 200
    assert named.get("/", headers={"host": "0.0.0.0:8765"}).status_code == 200
    assert named.get("/", headers={"host": "evil.example"}).status_code == 403


def test_on_an_address_that_others_reach_any_name_may_be_the_right_one() -> None:
    assert client(loopback_only=False).get("/", headers={"host": "desk.example"}).status_code == 200


def test_the_name_of_our_own_clients_is_for_the_socket_alone() -> None:
    assert client(over_socket=True).get("/", headers={"host": "node"}).status_code == 200
    assert client(over_socket=True).get("/", headers={"host": "evil.example"}).status_code == 403
    assert (
        client(token="secret").get("/", headers={"host": "node", "authorization": "Bearer secret"}).status_code == 403
    )


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "http://[", "file://", "http://localhost.evil.example", "app://localhost"),
        *("http://evil@localhost", "http://localhost#x", "http://node", "chrome-extension://abcdef"),
    ],
)
@pytest.mark.parametrize("loopback_only", [True, False])
def test_pages_of_other_origins_are_refused_with_the_setting_that_allows_them(origin: str, loopback_only: bool) -> None:
    preflight = {"access-control-request-method": "POST"}
    for reply in (
        client(loopback_only=loopback_only).get("/", headers={"origin": origin}),
        client(loopback_only=loopback_only).options("/", headers={"origin": origin, **preflight}),
    ):
        assert reply.status_code == 403
        assert "--cors" in reply.json()["error"]["message"]
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"])
def test_a_page_of_this_machine_is_let_in_and_may_read_the_answer(origin: str) -> None:
    reply = client().get("/", headers={"origin": origin, "sec-fetch-site": "cross-site"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin)
    assert "Origin" in reply.headers["vary"]


def test_a_browser_is_told_what_a_page_may_ask() -> None:
    reply = client().options(
        "/",
        headers={
            "origin": "http://localhost:3000",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
            "access-control-request-private-network": "true",
        },
    )
    assert reply.status_code in (200, 204)
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
    assert reply.headers["access-control-allow-private-network"] == "true"
    assert "POST" in reply.headers["access-control-allow-methods"]
    plain = client().options("/")
    assert (plain.status_code, "POST" in plain.headers["allow"]) == (204, True)


@pytest.mark.parametrize("origin", ["app://notes.example", "chrome-extension://abcdef", "https://nas.example:3000"])
def test_an_origin_that_the_owner_lists_is_let_in(origin: str) -> None:
    for origins in (frozenset({origin}), frozenset({"*"})):
        reply = client(origins=origins).get("/", headers={"origin": origin.upper()})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin.upper())


def test_what_a_browser_calls_cross_site_is_refused() -> None:
    assert client().get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client().get("/", headers={"sec-fetch-site": "none"}).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "secret", "bearer secret", "Bearer s\u00e9cret"])
def test_the_token_must_be_right(given: str) -> None:
    assert client(token="secret").get("/", headers={"authorization": given.encode()}).status_code == 401
    assert client(token="secret").get("/").status_code == 401
    assert client(token="secret").get("/", headers={"authorization": "Bearer secret"}).status_code == 200
