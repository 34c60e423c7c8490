"""A node's settings: the command line over `config.toml` over defaults, checked at the door."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

from node.errors import ConfigError, UsageError
from node.notation import parse_bytes, parse_host_name, parse_layers, parse_origin
from node.wire.models import Dtype, Quantise
from node.wire.plans import Aim

log = logging.getLogger(__name__)

DEFAULT_API = "localhost:8765"
CONFIG_LIMIT_BYTES = 64 * 1024

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `parallax node` can be told. Every field is a key of config.toml too, under the same name."""

    name: str = ""
    """What others see; empty: this machine's host name."""
    listen: tuple[str, ...] = ()
    """`HOST:PORT` addresses for peers; empty: all interfaces, a port that is kept from start to start."""
    announce: tuple[str, ...] = ()
    """`HOST:PORT` that peers are told instead of what is listened on: a router's forwarded port, a dynamic name."""
    api: str = DEFAULT_API
    """`HOST:PORT` for OpenAI clients; port 0 picks a free one, `localhost` is both loopbacks, `off` serves the control
    socket alone."""
    cors: tuple[str, ...] = ()
    """Web origins whose pages may call the API, beside those of this machine; `*`: all."""
    allow_host: tuple[str, ...] = ()
    """Names under which the API may be called, beside localhost, such as `host.docker.internal`."""
    join: tuple[str, ...] = ()
    """Invitation tokens."""
    model: str = ""
    """A name, GGUF file, folder or hub id; empty: the swarm's, or the embedded default."""
    layers: tuple[int, int] | None = None
    """Hold exactly these layers [start, end)."""
    memory_bytes: int | None = None
    """At most this much for weights and KV cache; None: 70 % of what the device has."""
    dtype: Dtype | None = None
    """None: the swarm's, or float32 on a CPU and bfloat16 on a GPU."""
    quantize: Quantise = "auto"
    """What becomes of weights when layers are loaded; `auto`: they stay as they are stored where that can be computed,
    16-bit ones become float32 where they fit and int8 where not."""
    threads: int | None = None
    """At most so many processor threads for the engine; None: all cores, divided among the nodes of a machine."""
    region: str = ""
    """Nodes that name the same region are taken to be near one another until their round trips have been measured."""
    objective: Aim | None = None
    """What the plan of a swarm that this node starts aims at; None: `auto`, or what the swarm had before."""
    control: Literal["unix", "tcp"] = "unix"
    """How local clients reach the node; Windows always uses tcp."""
    discover: bool = True
    """Find members of the same swarm on the local network (mDNS)."""
    min_nodes: int = 1
    """Make the first plan only when that many nodes are here."""
    log_format: Literal["text", "json"] = "text"
    log_level: LogLevel = "info"
    """The least important messages that are written."""


def parse_dtype(text: str) -> Dtype | None:
    """`auto` (None), `float32`, `bfloat16`, `float16`, or their short names."""
    names: dict[str, Dtype | None] = {
        "auto": None,
        "float32": "float32",
        "fp32": "float32",
        "bfloat16": "bfloat16",
        "bf16": "bfloat16",
        "float16": "float16",
        "fp16": "float16",
    }
    if text.lower() not in names:
        raise UsageError(f"--dtype {text!r}: choose one of auto, fp32, bf16, fp16")
    return names[text.lower()]


QUANTISE: tuple[Quantise, ...] = get_args(Quantise)


def parse_quantise(text: str) -> Quantise:
    """One of QUANTISE."""
    for quantise in QUANTISE:
        if text.strip().lower() == quantise:
            return quantise
    raise UsageError(f"--quantize {text[:40]!r}: choose one of {', '.join(QUANTISE)}")


OBJECTIVES: tuple[Aim, ...] = get_args(Aim)


def parse_objective(text: str) -> Aim:
    """One of OBJECTIVES."""
    for objective in OBJECTIVES:
        if text == objective:
            return objective
    raise UsageError(f"--objective {text!r}: choose one of {', '.join(OBJECTIVES)}")


def parse_log_level(text: str, option: str = "--log-level") -> LogLevel:
    """One of LOG_LEVELS."""
    for level in LOG_LEVELS:
        if text.strip().lower() == level:
            return level
    raise UsageError(f"{option} {text[:40]!r}: choose one of {', '.join(LOG_LEVELS)}")


def parse_host_port(text: str, option: str) -> tuple[str, int]:
    """`HOST:PORT`; an IPv6 host stands in brackets."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]/\s]+)):(\d{1,5})", text.strip())
    if not match or int(match[3]) > 65535:
        raise UsageError(f"{option} {text!r}: write HOST:PORT, such as 127.0.0.1:8765")
    return match[1] or match[2], int(match[3])


def listen_multiaddrs(listen: tuple[str, ...]) -> tuple[str, ...]:
    """libp2p addresses for `HOST:PORT` texts; a multiaddress is passed through. A name stands for all its addresses.

    Raises:
        UsageError: neither, or a name that is not known here.
    """
    addresses: dict[str, None] = {}
    for text in listen:
        if text.startswith("/"):
            if not re.fullmatch(r"/(ip4|ip6)/[0-9a-fA-F.:]+/tcp/\d{1,5}", text):
                raise UsageError(f"--listen {text!r}: write HOST:PORT or /ip4/ADDRESS/tcp/PORT")
            addresses[text] = None
            continue
        host, port = parse_host_port(text, "--listen")
        addresses |= {f"/ip{ip.version}/{ip}/tcp/{port}": None for ip in _addresses_of(host, text)}
    return tuple(addresses)


def announce_multiaddrs(announce: tuple[str, ...]) -> tuple[str, ...]:
    """The same for `--announce`. A name is kept as it is: what it means changes, and is looked up again and again.

    Raises:
        UsageError: neither `HOST:PORT` nor a TCP multiaddress.
    """
    addresses: list[str] = []
    for text in announce:
        if text.startswith("/"):
            if not re.fullmatch(r"/((ip4|ip6)/[0-9a-fA-F.:]+|dns[46]?/[0-9A-Za-z._-]+)/tcp/\d{1,5}", text):
                raise UsageError(f"--announce {text!r}: write HOST:PORT, /ip4/ADDRESS/tcp/PORT or /dns/NAME/tcp/PORT")
            addresses.append(text)
            continue
        host, port = parse_host_port(text, "--announce")
        if not _is_ip(host) and not re.fullmatch(r"[0-9A-Za-z._-]{1,253}", host):
            raise UsageError(f"--announce {text!r}: {host} is no host name")
        kind = f"ip{ipaddress.ip_address(host).version}" if _is_ip(host) else "dns"
        addresses.append(f"/{kind}/{host}/tcp/{port}")
    return tuple(addresses)


def _addresses_of(host: str, text: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if _is_ip(host):
        return [ipaddress.ip_address(host)]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--listen {text!r}: {host} is not known here as an address") from error
    hosts = dict.fromkeys(str(entry[4][0]).split("%")[0] for entry in found)
    return [ipaddress.ip_address(each) for each in hosts]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check(settings: Settings) -> Settings:
    """The same settings with the name filled in.

    Raises:
        UsageError: a value that cannot be taken; names option and value.
    """
    if settings.api != "off":
        parse_host_port(settings.api, "--api")
    listen_multiaddrs(settings.listen)
    announce_multiaddrs(settings.announce)
    if settings.threads is not None and not 1 <= settings.threads <= 4096:
        raise UsageError(f"--threads {settings.threads}: from 1 to 4096")
    if len(settings.region) > 64 or not (settings.region.isprintable() or not settings.region):
        raise UsageError(f"--region {settings.region!r}: at most 64 printable characters")
    if settings.min_nodes < 1:
        raise UsageError(f"--min-nodes {settings.min_nodes}: at least 1")
    name = settings.name or socket.gethostname().split(".")[0] or "node"
    if len(name) > 64 or not name.isprintable() or not name.strip():
        raise UsageError(f"--name {name!r}: 1 to 64 printable characters")
    return replace(settings, name=name)


def read_config(path: Path) -> Settings:
    """Settings from a file; defaults where there is none.

    Raises:
        ConfigError: not TOML, an unknown key, or a value of the wrong kind; names file and key.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
            return Settings()  # there can be none; who makes the folder says what is wrong with it
        raise ConfigError(str(path), None, f"cannot be read: {error.strerror}") from error
    if len(raw) > CONFIG_LIMIT_BYTES:
        raise ConfigError(str(path), None, f"is larger than {CONFIG_LIMIT_BYTES} bytes")
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), None, f"is not TOML: {error}") from error
    known = {field.name for field in fields(Settings)} - {"memory_bytes"} | {"memory"}
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(str(path), key, f"is not a setting; settings are {', '.join(sorted(known))}")
        try:
            field, values_for_field = _config_value(key, value)
        except UsageError as error:
            raise ConfigError(str(path), key, str(error)) from error
        values[field] = values_for_field
    if values.get("join"):
        _keep_private(path)
    return replace(Settings(), **values)  # type: ignore[arg-type]


def _keep_private(path: Path) -> None:
    """An invitation is as good as membership: others shall not read the file that holds one.

    Raises:
        ConfigError: they can, and that cannot be changed.
    """
    if os.name != "posix" or not path.stat().st_mode & 0o077:
        return
    try:
        path.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            str(path), "join", "holds an invitation, and others may read the file; chmod it to 600"
        ) from error
    log.warning("%s holds an invitation and could be read by others: its mode is 600 now", path)


def _config_value(key: str, value: object) -> tuple[str, object]:
    """The settings field and checked value for one key of the file."""
    match key, value:
        case "cors", (str() | list()):
            return key, tuple(parse_origin(each, key) for each in _texts(value))
        case "allow_host", (str() | list()):
            return key, tuple(parse_host_name(each, key) for each in _texts(value))
        case "log_level", str():
            return key, parse_log_level(value, key)
        case (("listen" | "announce" | "join"), list()) if all(isinstance(each, str) for each in value):
            return key, tuple(value)
        case (("listen" | "announce" | "join" | "name" | "api" | "model" | "region"), str()):
            return key, (value,) if key in ("listen", "announce", "join") else value
        case "layers", str():
            return key, parse_layers(value)
        case "memory", str():
            return "memory_bytes", parse_bytes(value)
        case "dtype", str():
            return key, parse_dtype(value)
        case "control", ("unix" | "tcp"):
            return key, value
        case "log_format", ("text" | "json"):
            return key, value
        case "discover", bool():
            return key, value
        case "objective", str():
            return key, parse_objective(value)
        case "quantize", str():
            return key, parse_quantise(value)
        case (("min_nodes" | "threads"), int()) if not isinstance(value, bool):
            return key, value
        case "join", _:  # it may be a part of an invitation: never shown
            raise UsageError("must be an invitation, or a list of them")
        case _:
            raise UsageError(f"cannot be {str(value)[:80]!r}")


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise UsageError("must be text, or a list of texts")
    return texts
