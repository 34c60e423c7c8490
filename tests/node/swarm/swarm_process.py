"""A node's swarm alone in a process of its own: commands as JSON lines on stdin, what happens as JSON lines on stdout.

Every `Step` frame that arrives is answered by a `Progress` frame to its sender, so that a peer can see whether it is
served. Run as `python swarm_process.py HOME NAME [--join TOKEN]… [--listen ADDRESS] [--lan]`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
from pathlib import Path

import psutil
import trio

from node.errors import LinkClosed, ParallaxError
from node.home import Home
from node.swarm.base import LinkLost, MemberGone, MemberSeen, PlanHeard
from node.swarm.host import SwarmSettings, open_swarm
from node.swarm.libp2p_swarm import Libp2pSwarm
from node.wire.frames import Progress, Step
from node.wire.ids import NodeId
from tests.fakes.frames import step_frame


def say(**what: object) -> None:
    sys.stdout.write(json.dumps({"at": time.time()} | what) + "\n")
    sys.stdout.flush()


async def report_news(swarm: Libp2pSwarm) -> None:
    async for news in swarm.news:
        match news:
            case MemberSeen(record):
                say(news="seen", id=record.node_id, name=record.name, sessions=record.sessions)
            case MemberGone(node_id, name, why):
                say(news="gone", id=node_id, name=name, why=why)
            case LinkLost(node_id, reason):
                say(news="link lost", id=node_id, reason=reason)
            case PlanHeard(plan):
                say(news="plan", epoch=plan.epoch, author=plan.author)


async def answer_frames(swarm: Libp2pSwarm) -> None:
    async for arrival in swarm.arrivals:
        say(arrival=type(arrival.frame).__name__, peer=arrival.peer, body=len(arrival.body), wire_ms=arrival.wire_ms)
        if isinstance(arrival.frame, Step):
            (part,) = arrival.frame.parts
            try:
                link = await swarm.link(arrival.peer)
                await link.send(Progress(part.session, 1, part.position))
            except LinkClosed as error:
                say(error=str(error))


def statistics(swarm: Libp2pSwarm) -> dict[str, object]:
    gc.collect()
    process = psutil.Process()
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "fds": process.num_fds(),
        "rss": process.memory_info().rss,
        "connections": len(swarm.connections.all()),
        "peers": swarm.connections.peers(),
    }


async def obey(swarm: Libp2pSwarm, line: str) -> bool:
    command = json.loads(line)
    match command["do"]:
        case "stop":
            return False
        case "members":
            say(members={node_id: record.seq for node_id, record in swarm.members().items()})
        case "statistics":
            say(statistics=statistics(swarm))
        case "update":
            await swarm.update(**command["changes"])
            say(updated=True)
        case "send":
            try:
                link = await swarm.link(NodeId(command["to"]))
                await link.send(step_frame("0" * 32, command["position"], time.perf_counter()), bytes(command["bytes"]))
                say(sent=command["position"])
            except ParallaxError as error:
                say(sent=None, error=str(error))
    return True


async def run(options: argparse.Namespace) -> None:
    root = Path(options.home)
    settings = SwarmSettings(
        home=Home(root, root / "run", root / "models"),
        name=options.name,
        listen=tuple(options.listen or ["/ip4/127.0.0.1/tcp/0"]),
        invitations=tuple(options.join),
        discover_lan=options.lan,
        machine_id="here",
        software="test",
    )
    async with open_swarm(settings) as swarm, trio.open_nursery() as nursery:
        nursery.start_soon(report_news, swarm)
        nursery.start_soon(answer_frames, swarm)
        say(ready=swarm.node_id, token=swarm.invitation(), addresses=swarm.members()[swarm.node_id].addresses)
        stdin = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        buffer = b""
        async for piece in stdin:
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                if not await obey(swarm, line.decode()):
                    nursery.cancel_scope.cancel()
                    break
    say(stopped=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home")
    parser.add_argument("name")
    parser.add_argument("--join", action="append", default=[])
    parser.add_argument("--listen", action="append")
    parser.add_argument("--lan", action="store_true")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
