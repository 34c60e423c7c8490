"""Shared by the swarm's tests: records, identities and homes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.home import Home
from node.swarm.identity import Identity, identity_from_seed
from node.wire.records import NodeRecord


@pytest.fixture
def make_home(tmp_path: Path) -> Callable[[str], Home]:
    def make(name: str = "home") -> Home:
        root = tmp_path / name
        return Home(root, root / "run", root / "models")

    return make


@pytest.fixture(scope="session")
def ada() -> Identity:
    return identity_from_seed(b"a" * 32)


@pytest.fixture(scope="session")
def bob() -> Identity:
    return identity_from_seed(b"b" * 32)


@pytest.fixture(scope="session")
def eve() -> Identity:
    return identity_from_seed(b"e" * 32)


@pytest.fixture(scope="session")
def record_of() -> Callable[..., NodeRecord]:
    def make(node_id: str, seq: int = 1, **fields: Any) -> NodeRecord:
        basic: dict[str, Any] = {
            "node_id": node_id,
            "name": node_id[-4:],
            "seq": seq,
            "ttl_s": 5.0,
            "machine_id": "here",
            "addresses": ("/ip4/192.0.2.1/tcp/4001",),
            "software": "test",
        }
        return NodeRecord(**(basic | fields))

    return make
