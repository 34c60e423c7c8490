"""The swarm's secret: 32 random bytes that every member knows. What is derived from it, and where it is kept.

The bytes themselves are never shown, logged or sent; an invitation is the only thing that carries them.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from node.home import Home, write_private
from node.swarm.identity import read_secret_file
from node.swarm.invitation import Invitation

log = logging.getLogger(__name__)

SECRET_FILE = "swarm.secret"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class SwarmSecret:
    """Compares and derives; never prints."""

    value: bytes = field(repr=False)

    def derive(self, purpose: bytes, *parts: bytes) -> bytes:
        """HMAC-SHA256 of the parts, each with its length, under a purpose: 32 bytes that tell nothing of the secret."""
        message = b"".join(len(part).to_bytes(4, "big") + part for part in (b"parallax " + purpose, *parts))
        return hmac.new(self.value, message, hashlib.sha256).digest()

    def mark(self) -> str:
        """Names the swarm on this machine, in files that must not be mixed up."""
        return self.derive(b"mark").hex()[:16]

    def statement_mark(self) -> bytes:
        """What every member's signatures are bound to."""
        return self.derive(b"statements")


def settle_secret(home: Home, invitations: Sequence[Invitation]) -> SwarmSecret:
    """Which swarm this home belongs to: that of the last invitation, else the one it was in, else one of its own.

    Raises:
        ConfigError: the file is there, but holds no secret.
    """
    path = home.data / SECRET_FILE
    kept = read_secret_file(path, "swarm secret", "join again with an invitation after removing it")
    secret = invitations[-1].secret if invitations else kept or secrets.token_bytes(SECRET_BYTES)
    if len({invitation.secret for invitation in invitations}) > 1:
        log.warning("the invitations are for different swarms; the last one counts")
    if kept is not None and not hmac.compare_digest(kept, secret):
        log.warning("this node leaves the swarm it belonged to and joins that of the invitation")
    if kept != secret:
        write_private(path, secret.hex().encode() + b"\n")
    return SwarmSecret(secret)
