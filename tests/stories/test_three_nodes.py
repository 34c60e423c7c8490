"""Three nodes, one real model, any OpenAI client: what a stranger does on the first evening."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import Greedy
from tests.stories.conftest import Machine, RealNode, processes_of, start_swarm, until

CAPITAL = "What is the capital of France?"
LAYERS = 30


@pytest.fixture(scope="module")
def swarm(shared_machine: Machine) -> list[RealNode]:
    """Three nodes that stay for the tests of this module; a test that kills one brings it back."""
    return start_swarm(shared_machine, "ada", "bob", "cy")


def openai_client(node: RealNode) -> openai.OpenAI:
    return openai.OpenAI(base_url=node.api, api_key="unused", max_retries=0, timeout=60.0)


def open_sessions(swarm: list[RealNode]) -> int:
    views = [node.state()["nodes"][node.state()["self_id"]] for node in swarm]
    return sum(view["record"]["sessions"] for view in views)


def test_the_ranges_tile_the_model_in_every_view(swarm: list[RealNode]) -> None:
    for node in swarm:
        ranges = sorted(node.ranges().values())
        assert ranges[0][0] == 0
        assert ranges[-1][1] == LAYERS
        assert len(ranges) == 3
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert node.names() == {"ada", "bob", "cy"}


def test_every_node_streams_the_oracles_tokens_through_the_openai_client(
    swarm: list[RealNode], greedy_oracle: list[Greedy]
) -> None:
    for node, greedy in zip(swarm, greedy_oracle, strict=False):
        stream = openai_client(node).chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": greedy.prompt}],
            temperature=0,
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = len(greedy.out) < 48
        assert text == greedy.out_text if whole else greedy.out_text.startswith(text)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert reasons[-1] == ("stop" if whole else "length")
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == len(greedy.ids)


def test_a_whole_answer_says_where_its_time_went(swarm: list[RealNode]) -> None:
    body = {"messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}
    reply = httpx.post(f"{swarm[1].api}/chat/completions", json=body, timeout=60).json()
    assert "Paris" in reply["choices"][0]["message"]["content"]
    hops = reply["parallax"]["hops"]
    assert sorted(hop["name"] for hop in hops) == ["ada", "bob", "cy"]
    assert all(hop["compute_ms"] > 0 for hop in hops)
    accounted = sum(h["wire_ms"] + h["queue_ms"] + h["compute_ms"] + h["serialise_ms"] for h in hops)
    accounted += reply["parallax"]["return_ms"]
    assert 0.5 * reply["parallax"]["tpot_ms"] < accounted < 1.5 * reply["parallax"]["tpot_ms"]


def test_requests_at_once_at_every_node_never_mix(swarm: list[RealNode], greedy_oracle: list[Greedy]) -> None:
    answers: dict[int, str] = {}

    def ask(index: int) -> None:
        answers[index] = swarm[index % 3].chat(greedy_oracle[index].prompt)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(greedy_oracle))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, greedy in enumerate(greedy_oracle):
        assert greedy.out_text.startswith(answers[index]), index
        assert answers[index]


def test_the_same_seed_gives_the_same_text_at_every_head(swarm: list[RealNode]) -> None:
    texts = {node.chat("Tell me a story.", temperature=1.0, seed=7, max_tokens=16) for node in swarm}
    assert len(texts) == 1
    assert swarm[0].chat("Tell me a story.", temperature=1.0, seed=8, max_tokens=16) not in texts


def test_a_stop_text_ends_the_answer_before_it(swarm: list[RealNode]) -> None:
    assert swarm[0].chat(CAPITAL, stop=["France"]) == "The capital of "
    assert swarm[0].chat(CAPITAL, stop=[" is Par", "zzz"]) == "The capital of France"


def test_a_client_that_goes_away_frees_the_sequence_on_every_hop(swarm: list[RealNode]) -> None:
    body = {"messages": [{"role": "user", "content": "Count to a million."}], "max_tokens": 1000, "stream": True}
    with swarm[2].client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        while '"content":"' not in next(lines):
            pass
        until("a sequence is open everywhere", lambda: open_sessions(swarm) == 3, 10)
    until("it is freed everywhere", lambda: open_sessions(swarm) == 0, 10)
    assert swarm[2].state()["requests"][-1]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(swarm: list[RealNode], fields: dict, named: str) -> None:
    body = {"model": "", "messages": [{"role": "user", "content": "Hi"}], **fields}
    reply = httpx.post(f"{swarm[0].api}/chat/completions", json=body, timeout=30)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == named
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"messages": ' + b"[" * 5000, b"null"])
def test_a_body_that_is_no_request_is_refused(swarm: list[RealNode], body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{swarm[0].api}/chat/completions", content=body, headers=headers, timeout=30)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_a_prompt_beyond_the_context_is_refused_with_its_length(swarm: list[RealNode]) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 9000}]}
    reply = httpx.post(f"{swarm[0].api}/chat/completions", json=body, timeout=30)
    assert reply.status_code == 400
    assert "context of 8192" in reply.json()["error"]["message"]


def test_web_pages_of_other_hosts_are_kept_out(swarm: list[RealNode]) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert httpx.get(f"{swarm[0].api}/models", headers=headers).status_code == 403
    form = {"content-type": "text/plain"}
    assert httpx.post(f"{swarm[0].api}/chat/completions", content=b"{}", headers=form).status_code == 400
    assert httpx.post(f"{swarm[0].api}/invitation").status_code == 404, "invitations are for the control socket alone"


def test_events_are_numbered_and_resume_where_a_reader_left(swarm: list[RealNode]) -> None:
    before = swarm[0].state()["seq"]
    swarm[0].chat(CAPITAL)
    with swarm[0].client() as client:
        kinds: list[str] = []
        numbers: list[int] = []
        with client.stream("GET", "/v1/events", params={"since": before}) as response:
            for line in response.iter_lines():
                if line:
                    event = json.loads(line)
                    numbers.append(event["seq"])
                    kinds.append(event["event"]["type"])
                if "request_finished" in kinds:
                    break
        assert numbers == list(range(before + 1, before + 1 + len(numbers)))
        assert kinds.index("request_started") < kinds.index("request_finished")
        assert client.get("/v1/events", params={"since": 10**9}).status_code == 410
        assert client.get("/v1/events", params={"since": "x"}).status_code == 400


def test_status_tells_people_and_programs_the_same(swarm: list[RealNode]) -> None:
    report = json.loads(swarm[0].command("status", "--json").stdout)
    assert report["serving"]
    assert [node["layers"] for node in report["nodes"]] == [list(r) for r in sorted(swarm[0].ranges().values())]
    text = swarm[0].command("status", "--once").stdout
    assert "whole" in text
    assert all(name in text for name in ("ada", "bob", "cy"))


def test_hostile_bytes_at_every_port_do_not_stop_the_answers(swarm: list[RealNode]) -> None:
    """Garbage, giant headers, a slow-loris and 200 half-open connections, at the API and at the peers' port."""
    node = swarm[0]
    api_port = int(node.api.split(":")[2].split("/")[0])
    addresses = node.state()["nodes"][node.state()["self_id"]]["record"]["addresses"]
    peer_port = int(next(a for a in addresses if a.startswith("/ip4/127.0.0.1/")).split("/")[4])
    held: list[socket.socket] = []
    try:
        for port in (api_port, peer_port):
            for payload in (
                b"\x00\xff" * 4096,
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{",
                b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 200_000,
                b"\x13/multistream/1.0.0\n" + b"\xff\xff\xff\x7f" + b"a" * 1000,
                b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            ):
                hostile = socket.create_connection(("127.0.0.1", port), timeout=5)
                held.append(hostile)
                try:
                    hostile.sendall(payload)
                except OSError:
                    continue  # closed on us already, as it should be
            held += [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(200)]
            for slow in held[-20:]:
                slow.sendall(b"G" if port == api_port else b"\x13")
        assert "Paris" in node.chat(CAPITAL)
        assert "Paris" in swarm[1].chat(CAPITAL)
        assert httpx.get(f"{node.api}/models", timeout=20).status_code == 200
        assert node.names() == {"ada", "bob", "cy"}
    finally:
        for hostile in held:
            hostile.close()
    assert all(each.process is not None and each.process.poll() is None for each in swarm)
    assert "Paris" in node.chat(CAPITAL)


def test_a_killed_node_is_gone_in_three_seconds_its_answer_goes_on_and_its_return_heals(swarm: list[RealNode]) -> None:
    ada, bob, cy = swarm
    pids = [node.process.pid for node in (ada, bob) if node.process]

    def ask(heard: list[str]) -> None:
        messages = [{"role": "user", "content": "Count to a million."}]
        body = {"messages": messages, "max_tokens": 200, "temperature": 0, "stream": True}
        with ada.client() as client, client.stream("POST", "/v1/chat/completions", json=body, timeout=150) as response:
            for line in response.iter_lines():
                heard.append(line)  # noqa: PERF402 - the test reads them as they come

    undisturbed: list[str] = []
    ask(undisturbed)
    heard: list[str] = []
    running = threading.Thread(target=ask, args=(heard,))
    running.start()
    until("the answer streams", lambda: any('"content"' in line for line in heard), 20)
    until("its sequences are told", lambda: open_sessions(swarm) == 3, 10)
    assert cy.process is not None
    cy.process.kill()
    cy.process.wait()
    killed_s = time.monotonic()
    for node in (ada, bob):
        until(f"{node.name} no longer shows cy", lambda node=node: "cy" not in node.names(), 3.0 + 1.0, 0.05)
    assert time.monotonic() - killed_s < 4.0
    assert "Paris" in bob.chat(CAPITAL), "a new request waits for whoever takes the layers over"
    running.join(90)
    assert not running.is_alive()
    assert text_of(heard) == text_of(undisturbed)
    until("its sequences are freed", lambda: open_sessions([ada, bob]) == 0, 5)
    until("the others have its layers", lambda: ada.healthy() and set(ada.ranges()) == {"ada", "bob"}, 60)
    cy.start(*cy.options)
    for node in swarm:
        until(f"{node.name} is whole again", lambda node=node: node.healthy() and len(node.ranges()) == 3, 60)
    assert [node.process.pid for node in (ada, bob) if node.process] == pids
    assert "Paris" in bob.chat(CAPITAL)


def text_of(lines: list[str]) -> str:
    """Of a streamed answer; an error in it is no answer."""
    assert not [line for line in lines if '"error"' in line]
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_a_stopped_node_is_gone_in_five_seconds_and_back_when_it_goes_on(swarm: list[RealNode]) -> None:
    ada, bob, cy = swarm
    assert cy.process is not None
    cy.process.send_signal(signal.SIGSTOP)
    try:
        for node in (ada, bob):
            until(f"{node.name} no longer shows cy", lambda node=node: "cy" not in node.names(), 5.0 + 1.0, 0.05)
    finally:
        cy.process.send_signal(signal.SIGCONT)
    for node in swarm:
        until(f"{node.name} is whole again", lambda node=node: node.healthy() and len(node.ranges()) == 3, 60)
    assert "Paris" in cy.chat(CAPITAL)


def test_a_node_that_leaves_lets_answers_end_and_hands_its_layers_over_first(swarm: list[RealNode]) -> None:
    ada, bob, cy = swarm
    began, left = threading.Event(), threading.Event()
    texts: list[str] = []

    def keep_asking(node: RealNode) -> None:
        while not left.is_set():
            texts.append(node.chat(CAPITAL, max_tokens=40))  # raises where a request fails
            began.set()

    with ThreadPoolExecutor() as askers:
        asked = [askers.submit(keep_asking, node) for node in (ada, bob)]
        assert began.wait(30)
        assert cy.stop(within_s=60) == 0
        for node in (ada, bob):
            until(f"{node.name} no longer shows cy", lambda node=node: "cy" not in node.names(), 1.5, 0.05)
            assert node.healthy(), "whole without a pause"
            assert len(node.ranges()) == 2
        left.set()
        for each in asked:
            each.result(60)
    assert len(set(texts)) == 1, "every answer is the same, whoever served it"
    assert not processes_of(cy.home)
    assert not [path for path in cy.home.rglob("*") if path.is_socket()]
    assert [path.name for path in (cy.home / "run").iterdir()] == ["node.lock"]


def test_ctrl_c_leaves_nothing_behind(swarm: list[RealNode], shared_machine: Machine) -> None:
    for node in swarm[:2]:
        assert node.stop(signal.SIGINT) == 0
    until("no process is left", lambda: not processes_of(shared_machine.folder), 5)
    assert not [path for path in Path(shared_machine.folder).rglob("*") if path.is_socket()]
    assert {path.name for node in swarm for path in (node.home / "run").iterdir()} <= {"node.lock"}
    for node in swarm:
        assert "Traceback" not in node.log()
