"""What `nursery.start` hands to a task. For annotations; libp2p brings trio-stubs, which hide trio's own type."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_typing import TaskStatus as TaskStatus
