"""`parallax node` on the command line. Light to import: the node itself is loaded only when it is run."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from node.config import LOG_LEVELS, OBJECTIVES, QUANTISE, Settings, check, parse_dtype, parse_log_level, read_config
from node.early_end import end_quietly_on_signals
from node.errors import ParallaxError, exit_code, sentence
from node.given_invitations import invitations
from node.home import Home
from node.notation import parse_bytes, parse_host_name, parse_layers, parse_origin

if TYPE_CHECKING:
    from node.worker_start import StartedForkServer


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """Every option of a node. Each one overrides the key of the same name in config.toml."""
    parser.add_argument("--name", help="what other members see (default: this machine's host name)")
    parser.add_argument(
        "--listen",
        action="append",
        metavar="HOST:PORT",
        help="address for peers; may be repeated (default: all interfaces, one port that is kept from start to start)",
    )
    parser.add_argument(
        "--announce",
        action="append",
        metavar="HOST:PORT",
        help="address or dynamic name that peers are told instead, where a router forwards a port; may be repeated",
    )
    parser.add_argument(
        "--api",
        metavar="HOST:PORT",
        help="address for OpenAI clients; `off` for none (default: localhost:8765 or the next free port)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        metavar="ORIGIN",
        help="let web pages of ORIGIN, such as http://nas:3000, call the API; may be repeated",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="let the API be called under NAME, such as host.docker.internal; may be repeated",
    )
    parser.add_argument(
        "--join",
        action="append",
        metavar="TOKEN",
        help="join the swarm that printed this token with `parallax invite`; `-` reads it from stdin, so that it "
        "stands in no list of processes (also: PARALLAX_JOIN, PARALLAX_JOIN_FILE)",
    )
    parser.add_argument("--model", help="name, GGUF file, folder or hub id (default: the swarm's, or the embedded one)")
    parser.add_argument("--layers", metavar="A-B", help="hold exactly layers A to B instead of the planned share")
    parser.add_argument("--memory", metavar="SIZE", help="use at most this much for weights and KV cache, such as 6g")
    parser.add_argument("--threads", type=int, metavar="N", help="use at most N processor threads for the layers")
    parser.add_argument("--region", metavar="NAME", help="where it stands: nodes of one region are near one another")
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        help="of the swarm that this node starts: auto, share (layers by memory), latency, throughput or balanced",
    )
    parser.add_argument("--dtype", help="auto, fp32, bf16 or fp16 (default: auto: fp32 on CPUs, bf16 on GPUs)")
    parser.add_argument(
        "--quantize",
        choices=QUANTISE,
        help="what becomes of weights: auto (as they are stored), none (32-bit numbers), int8 or int4 (default: auto)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="keep keys, settings and sockets here (also: PARALLAX_HOME)")
    parser.add_argument("--control", choices=("unix", "tcp"), help="how local clients reach it (default: unix)")
    parser.add_argument("--no-discover", action="store_true", help="do not look for members on the local network")
    parser.add_argument("--min-nodes", type=int, metavar="N", help="make the first plan only when N nodes are here")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="of the log (default: info; also: PARALLAX_LOG_LEVEL)")
    parser.add_argument("--log-format", choices=("text", "json"), help="of the log on stderr (default: text)")


def settings_from(options: argparse.Namespace, home: Home) -> Settings:
    """The command line over the environment over config.toml over defaults.

    Raises:
        UsageError: a value that cannot be taken.
    """
    settings = read_config(home.config)
    level = os.environ.get("PARALLAX_LOG_LEVEL")
    given: dict[str, object] = {
        "name": options.name if options.name is not None else None if settings.name else home.remembered_name() or None,
        "listen": tuple(options.listen) if options.listen else None,
        "announce": tuple(options.announce) if options.announce else None,
        "api": options.api,
        "cors": tuple(map(parse_origin, options.cors)) if options.cors else None,
        "allow_host": tuple(map(parse_host_name, options.allow_host)) if options.allow_host else None,
        "join": invitations(tuple(options.join or ())) or None,
        "model": options.model,
        "layers": parse_layers(options.layers) if options.layers else None,
        "memory_bytes": parse_bytes(options.memory) if options.memory else None,
        "threads": options.threads,
        "quantize": options.quantize,
        "region": options.region,
        "objective": options.objective,
        "control": options.control,
        "discover": False if options.no_discover else None,
        "min_nodes": options.min_nodes,
        "log_format": options.log_format,
        "log_level": options.log_level or (parse_log_level(level, "PARALLAX_LOG_LEVEL") if level else None),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if options.dtype is not None:
        changes["dtype"] = parse_dtype(options.dtype)
    return check(replace(settings, **changes))  # type: ignore[arg-type]


def run(options: argparse.Namespace) -> int:
    """Run the node that the options describe.

    Raises:
        ParallaxError: it cannot start.
    """
    end_quietly_on_signals()
    home = Home.from_environment(options.data_dir)
    settings = settings_from(options, home)
    fork_server = _fork_server(home)  # first: it imports while we do
    from node.main import run_node  # libp2p and the model room take a second to import: not for --help

    return run_node(settings, home, options.name, fork_server)


def _fork_server(home: Home) -> StartedForkServer | None:
    """What workers come from, importing what this home computed with last; None where workers are not forked."""
    from node.remembered_machine import RememberedMachine
    from node.worker_start import CAN_FORK, USUAL_BACKENDS, start_fork_server

    if not CAN_FORK:
        return None
    return start_fork_server(sys.executable, RememberedMachine(home.machine_file).backends or USUAL_BACKENDS)


def main(arguments: list[str] | None = None) -> int:
    end_quietly_on_signals()
    parser = argparse.ArgumentParser(prog="parallax node", description="A headless member of a swarm.")
    add_node_options(parser)
    try:
        return run(parser.parse_args(arguments))
    except (ParallaxError, OSError) as error:
        print(f"parallax: {sentence(error)}", file=sys.stderr)
        return exit_code(error)
