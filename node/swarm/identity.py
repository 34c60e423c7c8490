"""Who this node is: an Ed25519 key kept in its home, and statements signed with it.

A peer id contains the public key, so a signature is checked with nothing but the id it claims to be from.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from node.errors import BadWireData, ConfigError
from node.home import Home, write_private
from node.wire.ids import NodeId
from node.wire.statements import Envelope

log = logging.getLogger(__name__)

KEY_FILE = "identity.key"
SEED_BYTES = 32
DOMAIN = b"parallax statement 3\0"
"""Begins everything that is signed, so that no signature of ours means anything elsewhere. The number is the form's and
not the wire's: nodes of unequal versions check one another's statements and pass them on."""

Kind = Literal["profile", "status", "trips", "beat", "leave", "plan"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's key. Its id is what others call it."""

    node_id: NodeId
    key_pair: KeyPair = field(repr=False)

    def sign(self, kind: Kind, payload: bytes, swarm_mark: bytes) -> Envelope:
        """A statement that every member of that swarm can check, and that means nothing in another."""
        signature = self.key_pair.private_key.sign(_signed_bytes(kind, payload, swarm_mark))
        return Envelope(kind, self.node_id, payload, signature)


def verify(envelope: Envelope, swarm_mark: bytes) -> None:
    """Check that the envelope's owner signed it, as that kind of statement, for that swarm.

    Raises:
        BadWireData: it did not, or its id is none that carries an Ed25519 key.
    """
    key = _public_key(envelope.node_id)
    signed = _signed_bytes(envelope.kind, envelope.payload, swarm_mark)
    if key is None or not key.verify(signed, envelope.signature):
        raise BadWireData(f"{envelope.kind} of {envelope.node_id}", "the signature is not its owner's")


def identity_from_seed(seed: bytes) -> Identity:
    """The identity that belongs to 32 secret bytes."""
    key_pair = create_new_key_pair(seed)
    return Identity(NodeId(str(ID.from_pubkey(key_pair.public_key).to_base58())), key_pair)


def load_identity(home: Home) -> Identity:
    """This home's identity; made on first use, the same ever after.

    Raises:
        ConfigError: the key file is there, but is no key.
    """
    path = home.data / KEY_FILE
    seed = read_secret_file(path, "node key", "restore it from a backup, or remove it to get a new identity")
    if seed is None:
        seed = secrets.token_bytes(SEED_BYTES)
        write_private(path, seed.hex().encode() + b"\n")
    return identity_from_seed(seed)


def read_secret_file(path: Path, what: str, what_now: str) -> bytes | None:
    """The 32 secret bytes that a file holds in hex, or None where there is no file. Loose permissions are tightened.

    Raises:
        ConfigError: the file cannot be read or holds something else. The message never shows the content.
    """
    try:
        text = path.read_bytes().strip()
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            str(path), None, f"cannot be read ({error.strerror}); make it yours with mode 0600"
        ) from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s could be read by others; its mode is set to 0600", path)
        path.chmod(0o600)
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SEED_BYTES:
        raise ConfigError(str(path), None, f"holds no {what}, it is damaged; {what_now}")
    return secret


def _signed_bytes(kind: str, payload: bytes, swarm_mark: bytes) -> bytes:
    lengths = bytes((len(swarm_mark), len(kind.encode())))
    return DOMAIN + lengths + swarm_mark + kind.encode() + payload


@lru_cache(maxsize=4096)
def _public_key(node_id: str) -> Ed25519PublicKey | None:
    """The key inside a peer id; None unless the id is the one and only spelling of that key's id."""
    try:
        peer_id = ID.from_base58(node_id)
        key = peer_id.extract_public_key()
        if isinstance(key, Ed25519PublicKey) and ID.from_pubkey(key).to_base58() == node_id:
            return key
    except Exception:
        log.debug("no key in a peer id")
    return None
