"""The plan over HTTP: what would be, made so, and every way to be refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import httpx
import pytest
import trio
from msgspec.structs import replace
from starlette.testclient import TestClient

from node.api.http.owner import Owner
from node.api.routes.apps import client_app, control_app
from node.api.service import Service
from node.journal.log import Journal
from node.pipeline.dispatch import Dispatcher
from node.wire.events import NodeSeen
from node.wire.plans import Assignment, Override, PlanSettings
from node.wire.records import HeldRange, NodeRecord
from tests.fakes.node_control import FakeNodeControl
from tests.fakes.swarms import DESK, FACTS, GIB, LOFT, NAMES, STUDIO, plan, record

MEMBERS = tuple(record(node_id) for node_id in (DESK, STUDIO, LOFT))


def swarm(members: Sequence[NodeRecord] = MEMBERS, **changes: object) -> FakeNodeControl:
    """The three machines, ten layers each."""
    return FakeNodeControl(replace(plan(), **changes), members)


def service(control: FakeNodeControl) -> Service:
    return Service(control, cast("Dispatcher", None), Journal(DESK))


def asked(control: FakeNodeControl, path: str = "/v1/plan", status: int = 200, **body: object) -> dict[str, Any]:
    client = TestClient(control_app(service(control), token=None), base_url="http://node", backend="trio")
    reply = client.post(path, json=body)
    assert reply.status_code == status, reply.text
    return cast("dict[str, Any]", reply.json())


def applied(control: FakeNodeControl, status: int = 200, **body: object) -> dict[str, Any]:
    return asked(control, "/v1/plan/apply", status, **body)


def refused(control: FakeNodeControl, status: int = 400, **body: object) -> str:
    return cast("str", asked(control, status=status, **body)["error"]["message"])


def test_a_dry_run_says_what_would_be_and_changes_nothing() -> None:
    control = swarm()
    reply = asked(control, nodes={"loft": {"duty": "drain"}})
    assert control.in_force == plan()
    assert (reply["applied"], reply["changes"], reply["epoch"]) == (False, True, 2)
    assert [(move["name"], move["before"], move["after"]) for move in reply["moves"]] == [
        ("desk", [0, 10], [0, 15]),
        ("studio", [10, 20], [15, 30]),
        ("loft", [20, 30], None),
    ]
    assert reply["load_bytes"] > 0
    assert reply["load_bytes"] == sum(step["weight_bytes"] for step in reply["steps"] if step["kind"] == "load")
    assert [each["name"] for each in reply["standby"]] == ["loft"]
    assert "desk" in reply["text"]
    assert "tokens/s" in reply["text"]


def test_applied_it_is_the_plan_and_its_settings_stay_for_the_next_change() -> None:
    control = swarm()
    applied(control, nodes={"loft": {"duty": "drain"}})
    applied(control, objective="latency", nodes={LOFT: {"memory_bytes": "1g"}, "studio": {"memory_bytes": GIB}})
    assert control.in_force is not None
    assert control.in_force.epoch == 3
    assert control.in_force.settings == PlanSettings(
        "latency",
        (
            Override(LOFT, memory_bytes=GIB, duty="drain", name="loft"),
            Override(STUDIO, memory_bytes=GIB, name="studio"),
        ),
    )
    reply = applied(
        control, objective="auto", nodes={"loft": {"duty": "serve", "memory_bytes": None}}, reset=["studio"]
    )
    assert control.in_force.settings == PlanSettings()
    assert (reply["applied"], reply["settings"]) == (True, {"objective": "auto", "overrides": []})


def test_null_takes_back_whatever_it_stands_for() -> None:
    settings = PlanSettings("latency", (Override(DESK, (0, 12), GIB), Override(LOFT, duty="drain")))
    control = swarm(settings=settings)
    applied(control, objective=None, nodes={"desk": None, "loft": {"duty": None}})
    assert control.in_force is not None
    assert control.in_force.settings == PlanSettings()


def test_a_node_that_is_away_can_be_named_as_it_was_called() -> None:
    control = swarm(
        settings=PlanSettings(overrides=(Override("12D3KooWaway0000gone0009", duty="exclude", name="attic"),))
    )
    assert "attic (12D3KooWaway0000gone0009)" in refused(control, reset=["cellar"])
    applied(control, reset=["attic"])
    assert control.in_force is not None
    assert not control.in_force.settings.overrides


def test_a_range_or_a_cap_that_is_taken_back_lets_go() -> None:
    control = swarm()
    assert control.in_force is not None
    before = control.in_force.assignments
    for change in ({"layers": "0:20"}, {"memory_bytes": "100m"}):
        applied(control, nodes={"desk": change})
        assert control.in_force.assignments != before
        applied(control, reset=["desk"])
        assert control.in_force.assignments == before
        assert control.in_force.note == "every node has layers in proportion to its memory"
        assert not control.in_force.standby


def test_a_change_that_leaves_layers_to_nobody_is_refused() -> None:
    control = swarm()
    said = refused(control, 422, nodes={name: {"layers": "5:10"} for name in ("desk", "studio", "loft")})
    assert "left open by ranges set by hand" in said


def test_a_node_that_is_away_can_be_excluded_and_reset_by_name() -> None:
    control = swarm()
    applied(control, nodes={"garage": {"duty": "exclude"}})
    assert control.in_force is not None
    assert control.in_force.settings.overrides == (Override("12D3KooWseen0000before01", duty="exclude", name="garage"),)
    applied(control, reset=["garage"])
    assert not control.in_force.settings.overrides
    assert not applied(control, reset=["garage"])["changes"]


def test_nothing_asked_is_the_plan_as_things_are() -> None:
    reply = asked(swarm())
    assert reply["settings"]["objective"] == "auto"
    assert reply["objective"] == "share"


@pytest.mark.parametrize("layers", [[0, 12], "0:12"])
def test_a_pin_is_held_exactly(layers: object) -> None:
    control = swarm()
    reply = applied(control, nodes={"desk": {"layers": layers}})
    assert control.in_force is not None
    assert control.in_force.range_of(DESK) == Assignment(DESK, 0, 12)
    assert reply["settings"]["overrides"][0]["name"] == "desk"
    assert control.in_force.settings.of(DESK).layers == (0, 12)


def test_what_is_reset_can_be_set_anew_in_the_same_request() -> None:
    settings = PlanSettings(overrides=(Override(DESK, (0, 12), GIB, "drain"),))
    control = swarm(settings=settings)
    applied(control, reset=["desk"], nodes={"desk": {"memory_bytes": GIB // 2}})
    assert control.in_force is not None
    assert control.in_force.settings.overrides == (Override(DESK, memory_bytes=GIB // 2, name="desk"),)


def test_a_node_that_is_away_can_be_reset_by_its_id_or_the_end_of_it() -> None:
    settings = PlanSettings(overrides=(Override("12D3KooWaway0000gone0009", duty="exclude"),))
    for called in ("12D3KooWaway0000gone0009", "gone0009"):
        control = swarm(settings=settings)
        applied(control, reset=[called])
        assert control.in_force is not None
        assert not control.in_force.settings.overrides


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"nodes": {"cellar": {"duty": "drain"}}}, f"cellar.*desk \\({DESK}\\)"),
        ({"reset": ["cellar"]}, "reset.*cellar"),
        ({"nodes": {"desk": {"layers": "0:3", "duty": "exclude"}}}, "desk.*contradict"),
        ({"nodes": {"desk": {"layers": "0:31"}}}, "desk.layers.*30 layers"),
        ({"nodes": {"desk": {"layers": [5, 5]}}}, "desk.layers"),
        ({"nodes": {"desk": {"layers": [-1, 5]}}}, "desk.layers"),
        ({"nodes": {"desk": {"layers": [0, 10**30]}}}, "desk.layers"),
        ({"nodes": {"desk": {"layers": [0, 5, 9]}}}, "desk.*layers"),
        ({"nodes": {"desk": {"layers": "all"}}}, "desk.layers.*'all'"),
        ({"nodes": {"desk": {"memory_bytes": 0}}}, "desk.memory_bytes"),
        ({"nodes": {"desk": {"memory_bytes": -1}}}, "desk.memory_bytes"),
        ({"nodes": {"desk": {"memory_bytes": 10**30}}}, "desk"),
        ({"nodes": {"desk": {"memory_bytes": "lots"}}}, "desk.memory_bytes.*'lots'"),
        ({"nodes": {"desk": {"memory_bytes": True}}}, "desk"),
        ({"nodes": {"desk": {"duty": "sleep"}}}, "^nodes.desk.duty: .* serve, drain, exclude$"),
        ({"nodes": {"desk": {"memory_bytes": []}}}, "^nodes.desk.memory_bytes: "),
        ({"nodes": {"desk": {"colour": "red"}}}, "desk.*colour"),
        ({"nodes": {"desk": {"duty": "drain"}, DESK: {"duty": "serve"}}}, "once"),
        ({"nodes": {"": {}}}, "nodes"),
        ({"nodes": []}, "nodes"),
        ({"objective": "speed"}, "^objective: .* auto, share, latency, throughput, balanced$"),
        ({"objectives": "latency"}, "objectives"),
        ({"epoch": -1}, "epoch"),
        ({"reset": "desk"}, "reset"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(body: dict[str, object], named: str) -> None:
    control = swarm()
    message = applied(control, status=400, **body)["error"]["message"]
    assert re.search(named, message)
    assert control.in_force == plan()


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b'{"nodes": {"desk": {"memory_bytes": NaN}}}', b"[" * 5000])
def test_no_bytes_do_anything_but_a_refusal(body: bytes) -> None:
    client = TestClient(control_app(service(swarm()), token=None), base_url="http://node", backend="trio")
    reply = client.post("/v1/plan", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_a_body_without_end_is_refused() -> None:
    assert "larger" in refused(swarm(), 413, reset=["x" * 100] * 20_000)


def test_a_name_that_two_nodes_share_needs_an_id() -> None:
    control = swarm([*MEMBERS[:2], record(LOFT, name="desk")])
    message = refused(control, nodes={"desk": {"duty": "drain"}})
    assert DESK in message
    assert LOFT in message
    asked(control, nodes={LOFT: {"duty": "drain"}})


def test_what_its_owner_set_is_not_undone_from_elsewhere() -> None:
    control = swarm([record(DESK, pinned_layers=(0, 12)), *MEMBERS[1:]])
    assert "--layers 0-11" in refused(control, nodes={"desk": {"layers": [0, 20]}})
    asked(control, nodes={"desk": {"layers": [0, 12]}})


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    tiny = {"memory_bytes": "20m"}
    error = asked(swarm(), status=422, nodes={"desk": tiny, "studio": tiny, "loft": tiny})["error"]
    assert error["missing_bytes"] > 0
    assert "missing" in error["message"]


def test_a_pin_that_overfills_its_node_is_refused() -> None:
    assert "GiB" in refused(swarm(), objective="latency", nodes={"desk": {"layers": [0, 30], "memory_bytes": "64m"}})


def test_a_change_of_a_plan_that_is_no_longer_in_force_comes_too_late() -> None:
    control = swarm()
    applied(control, objective="latency", epoch=1)
    before = control.in_force
    error = applied(control, status=409, objective="balanced", epoch=1)["error"]
    assert (error["code"], control.in_force) == ("PlanChanged", before)
    assert "plan 2 is in force" in error["message"]


def test_another_members_change_that_comes_in_between_is_kept() -> None:
    def meanwhile(control: FakeNodeControl) -> None:
        assert control.in_force is not None
        if control.in_force.epoch == 1:
            settings = PlanSettings(overrides=(Override(DESK, memory_bytes=GIB),))
            control.in_force = replace(control.in_force, epoch=2, settings=settings)

    control = swarm()
    control.before_apply = meanwhile
    applied(control, nodes={"loft": {"memory_bytes": GIB}})
    assert control.in_force is not None
    assert [override.node_id for override in control.in_force.settings.overrides] == [DESK, LOFT]


def test_changes_asked_at_once_are_made_in_turn() -> None:
    control = swarm()
    app = control_app(service(control), token=None)

    async def ask_all() -> list[int]:
        codes: list[int] = []

        async def ask(client: httpx.AsyncClient, name: str, memory_bytes: int) -> None:
            reply = await client.post("/v1/plan/apply", json={"nodes": {name: {"memory_bytes": memory_bytes}}})
            codes.append(reply.status_code)

        node = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node")  # type: ignore[arg-type]
        async with node as client, trio.open_nursery() as nursery:
            for more in range(3):
                for name in NAMES.values():
                    nursery.start_soon(ask, client, name, GIB + more)
        return codes

    assert trio.run(ask_all) == [200] * 9
    assert control.in_force is not None
    assert [override.node_id for override in control.in_force.settings.overrides] == sorted(NAMES)


def test_without_a_plan_there_is_nothing_to_change() -> None:
    control = FakeNodeControl(None, MEMBERS)
    assert "measure themselves" in refused(control, status=503)


def test_a_member_that_is_loading_counts_with_its_plan() -> None:
    control = swarm([record(DESK, held=(HeldRange(0, 10, "loading", 1),)), *MEMBERS[1:]])
    assert asked(control)["layers"] == FACTS.layers


TOKEN = {"authorization": "Bearer secret"}


def on_tcp(control: FakeNodeControl, *, loopback_only: bool, base_url: str = "http://localhost") -> TestClient:
    owner = Owner("secret", "/home/run/api.token", exposed=not loopback_only)
    app = client_app(service(control), loopback_only=loopback_only, owner=owner)
    return TestClient(app, base_url=base_url, backend="trio")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"content-type": "text/plain"}, 400),
        ({"content-type": "application/x-www-form-urlencoded"}, 400),
        ({"content-encoding": "br"}, 415),
    ],
)
@pytest.mark.parametrize("path", ["/v1/plan", "/v1/plan/apply"])
def test_a_web_page_cannot_change_the_plan(path: str, headers: dict[str, str], status: int) -> None:
    control = swarm()
    body = json.dumps({"objective": "latency"})
    sent = {"content-type": "application/json", **TOKEN, **headers}
    reply = on_tcp(control, loopback_only=True).post(path, content=body, headers=sent)
    assert reply.status_code == status
    assert (control.in_force == plan()) == (status != 200 or path == "/v1/plan")


@pytest.mark.parametrize("loopback_only", [True, False])
def test_on_tcp_only_who_can_read_the_owners_token_changes_the_plan(loopback_only: bool) -> None:
    control = swarm()
    client = on_tcp(control, loopback_only=loopback_only)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        reply = client.post("/v1/plan/apply", json={"objective": "latency"}, headers=headers)
        assert reply.status_code == 403
        assert "/home/run/api.token" in reply.json()["error"]["message"]
        assert "parallax plan" in reply.json()["error"]["message"]
        assert control.in_force == plan()
    assert client.post("/v1/plan/apply", json={"objective": "latency"}, headers=TOKEN).status_code == 200
    assert control.in_force != plan()


def test_where_other_machines_reach_it_plans_and_addresses_are_the_owners_alone() -> None:
    control = swarm()
    journal = Journal(DESK)
    for member in MEMBERS:
        journal.append(NodeSeen(replace(member, addresses=("/ip4/192.0.2.7/tcp/4001",))))
    served = Service(control, cast("Dispatcher", None), journal)
    app = client_app(served, loopback_only=False, owner=Owner("secret", "", exposed=True))
    client = TestClient(app, base_url="http://desk.example", backend="trio")
    assert client.post("/v1/plan", json={"objective": "latency"}).status_code == 403
    assert client.post("/v1/plan", json={"objective": "latency"}, headers=TOKEN).status_code == 200
    assert "192.0.2.7" not in client.get("/v1/state").text
    assert len(client.get("/v1/state").json()["nodes"]) == len(MEMBERS)
    assert "192.0.2.7" in client.get("/v1/state", headers=TOKEN).text


def test_on_loopback_everybody_may_look_at_the_plan() -> None:
    assert on_tcp(swarm(), loopback_only=True).post("/v1/plan", json={}).status_code == 200
