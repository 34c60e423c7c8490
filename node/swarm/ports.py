"""The ports that this home listened on last time, so that those who remember it find it again."""

from __future__ import annotations

import json
import logging

from node.home import Home, write_private

log = logging.getLogger(__name__)

PORTS_FILE = "ports.json"


def recall_ports(home: Home) -> dict[str, int]:
    """Listen address as it was asked for, to the port that it got. Empty where nothing useful is remembered."""
    try:
        ports = json.loads((home.data / PORTS_FILE).read_bytes())
        return {str(address): int(port) for address, port in ports.items() if 0 < int(port) < 65536}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read and is made anew: %r", home.data / PORTS_FILE, error)
        return {}


def remember_ports(home: Home, ports: dict[str, int]) -> None:
    """Keep them for the next start."""
    if ports != recall_ports(home):
        write_private(home.data / PORTS_FILE, json.dumps(ports).encode())
