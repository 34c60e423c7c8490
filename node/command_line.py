"""`parallax node` on the command line. Light to import: the node itself is loaded only when it is run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from node.config import OBJECTIVES, Settings, check, parse_dtype, read_config
from node.errors import ParallaxError
from node.home import Home
from node.notation import parse_bytes, parse_layers


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """Every option of a node. Each one overrides the key of the same name in config.toml."""
    parser.add_argument("--name", help="what other members see (default: this machine's host name)")
    parser.add_argument(
        "--listen",
        action="append",
        metavar="HOST:PORT",
        help="address for peers; may be repeated (default: all interfaces, a port that is kept from start to start)",
    )
    parser.add_argument(
        "--announce",
        action="append",
        metavar="HOST:PORT",
        help="address that peers are told instead, where a router forwards a port; may be repeated",
    )
    parser.add_argument(
        "--api",
        metavar="HOST:PORT",
        help="address for OpenAI clients; `off` for none (default: 127.0.0.1:8765 or the next free port)",
    )
    parser.add_argument(
        "--join", action="append", metavar="TOKEN", help="join the swarm that printed this token with `parallax invite`"
    )
    parser.add_argument("--model", help="name, GGUF file, folder or hub id (default: the swarm's, or the embedded one)")
    parser.add_argument("--layers", metavar="A:B", help="hold exactly layers A to B-1 instead of the planned share")
    parser.add_argument("--memory", metavar="SIZE", help="use at most this much for weights and KV cache, such as 6g")
    parser.add_argument("--threads", type=int, metavar="N", help="use at most N processor threads for the layers")
    parser.add_argument("--region", metavar="NAME", help="where it stands: nodes of one region are near one another")
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        help="of the swarm that this node starts: auto, share (layers by memory), latency, throughput or balanced",
    )
    parser.add_argument("--dtype", help="auto, fp32, bf16 or fp16 (default: auto: fp32 on CPUs, bf16 on GPUs)")
    parser.add_argument("--data-dir", metavar="DIR", help="keep keys, settings and sockets here (also: PARALLAX_HOME)")
    parser.add_argument("--control", choices=("unix", "tcp"), help="how local clients reach it (default: unix)")
    parser.add_argument("--no-discover", action="store_true", help="do not look for members on the local network")
    parser.add_argument("--min-nodes", type=int, metavar="N", help="make the first plan only when N nodes are here")
    parser.add_argument("--log-format", choices=("text", "json"), help="of the log on stderr (default: text)")


def settings_from(options: argparse.Namespace, home: Home) -> Settings:
    """The command line over config.toml over defaults.

    Raises:
        UsageError: a value that cannot be taken.
    """
    settings = read_config(home.config)
    given: dict[str, object] = {
        "name": options.name,
        "listen": tuple(options.listen) if options.listen else None,
        "announce": tuple(options.announce) if options.announce else None,
        "api": options.api,
        "join": tuple(options.join) if options.join else None,
        "model": options.model,
        "layers": parse_layers(options.layers) if options.layers else None,
        "memory_bytes": parse_bytes(options.memory) if options.memory else None,
        "threads": options.threads,
        "region": options.region,
        "objective": options.objective,
        "control": options.control,
        "discover": False if options.no_discover else None,
        "min_nodes": options.min_nodes,
        "log_format": options.log_format,
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
    home = Home.from_environment(options.data_dir)
    settings = settings_from(options, home)
    from node.main import run_node  # libp2p and the model room take a second to import: not for --help

    return run_node(settings, home)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="parallax node", description="A headless member of a swarm.")
    add_node_options(parser)
    try:
        return run(parser.parse_args(arguments))
    except ParallaxError as error:
        print(f"parallax: {error}", file=sys.stderr)
        return error.exit_code
