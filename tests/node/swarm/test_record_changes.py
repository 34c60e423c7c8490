"""What mypy checks of a change of our record is what records have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_origin, get_type_hints

from node.swarm.record_changes import RecordChanges
from node.wire.records import NodeRecord

OF_THE_SWARM = {"node_id", "name", "seq", "ttl_s", "machine_id", "addresses", "software", "rtt_ms", "unreachable"}


def test_each_field_of_a_record_is_filled_in_by_the_swarm_or_can_be_changed_by_others() -> None:
    assert not set(RecordChanges.__annotations__) & OF_THE_SWARM
    assert set(RecordChanges.__annotations__) | OF_THE_SWARM == set(NodeRecord.__struct_fields__)


def test_changes_have_the_types_of_the_fields() -> None:
    of_records = get_type_hints(NodeRecord)
    for field, kind in get_type_hints(RecordChanges).items():
        assert kind == of_records[field] or get_origin(kind) is Mapping, field
