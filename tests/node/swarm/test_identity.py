"""The key in the home, and what a signature covers."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from node.errors import BadWireData, ConfigError
from node.home import Home
from node.swarm.identity import KEY_FILE, Identity, load_identity, verify
from node.swarm.secret import SECRET_FILE, SwarmSecret, settle_secret
from node.wire.statements import Envelope

MakeHome = Callable[..., Home]


def test_an_identity_is_made_once_and_kept_privately(make_home: MakeHome) -> None:
    home = make_home()
    first, second = load_identity(home), load_identity(home)
    assert first.node_id == second.node_id
    assert stat.S_IMODE(os.stat(home.data / KEY_FILE).st_mode) == 0o600
    assert load_identity(make_home("other")).node_id != first.node_id


@pytest.mark.parametrize("content", [b"", b"abc", b"00" * 31, b"zz" * 32, b"\xff" * 64, b"00" * 33])
def test_a_damaged_key_file_is_named_and_its_content_is_not_shown(make_home: MakeHome, content: bytes) -> None:
    home = make_home()
    home.data.mkdir()
    (home.data / KEY_FILE).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_identity(home)
    assert KEY_FILE in str(caught.value)
    assert not content or content.decode(errors="replace") not in str(caught.value)


def test_loose_permissions_are_tightened(make_home: MakeHome) -> None:
    home = make_home()
    load_identity(home)
    (home.data / KEY_FILE).chmod(0o644)
    load_identity(home)
    assert stat.S_IMODE(os.stat(home.data / KEY_FILE).st_mode) == 0o600


def test_a_signature_holds_for_its_owner_kind_payload_and_swarm_alone(ada: Identity, bob: Identity) -> None:
    swarm, other = SwarmSecret(b"s" * 32).statement_mark(), SwarmSecret(b"t" * 32).statement_mark()
    envelope = ada.sign("status", b"payload", swarm)
    verify(envelope, swarm)
    for forged in (
        Envelope("plan", ada.node_id, b"payload", envelope.signature),
        Envelope("status", bob.node_id, b"payload", envelope.signature),
        Envelope("status", ada.node_id, b"payloae", envelope.signature),
        Envelope("status", ada.node_id, b"payload", bytes(64)),
    ):
        with pytest.raises(BadWireData):
            verify(forged, swarm)
    with pytest.raises(BadWireData):
        verify(envelope, other)


def test_no_two_statements_are_the_same_bytes_to_sign(ada: Identity) -> None:
    """Neither a longer kind nor a longer mark may take over what belongs to the payload."""
    one = ada.sign("plan", b"payload", b"mark")
    for kind, payload, mark in (
        ("planp", b"ayload", b"mark"),
        ("plan", b"payload", b"markp"),
        ("lan", b"payload", b"markp"),
    ):
        with pytest.raises(BadWireData):
            verify(Envelope(kind, ada.node_id, payload, one.signature), mark)


@pytest.mark.parametrize("node_id", ["", "x", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0" * 52])
def test_an_id_without_a_key_proves_nothing(ada: Identity, node_id: str) -> None:
    with pytest.raises(BadWireData):
        verify(Envelope("status", node_id, b"payload", ada.sign("status", b"payload", b"mark").signature), b"mark")


def test_neither_key_nor_secret_is_printed(ada: Identity, make_home: MakeHome) -> None:
    home = make_home()
    secret = settle_secret(home, [])
    kept = (home.data / SECRET_FILE).read_text().strip()
    assert kept == secret.value.hex()
    for shown in (repr(secret), repr(ada), str(secret)):
        assert kept not in shown
        assert repr(secret.value) not in shown
        assert ada.key_pair.private_key.to_bytes().hex() not in shown
