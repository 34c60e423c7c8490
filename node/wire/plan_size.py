"""How large a plan may be when it travels, and how one is made to fit: what is for people gives way, ranges never."""

from __future__ import annotations

from msgspec.structs import replace

from node.errors import BadWireData
from node.wire.codec import encode
from node.wire.plans import Plan, Standby
from node.wire.statements import LIMIT_BYTES

PLAN_LIMIT_BYTES = LIMIT_BYTES["plan"]
"""1000 nodes with ranges are 80 KiB, settings by hand for each of them as much again. Such an envelope, sent alone,
still fits a control message."""

SHORTER_REASONS = (80, 40, 0)
"""Characters that are left of a standby's reason, tried in this order."""


def fit(plan: Plan) -> Plan:
    """The same plan, with shorter reasons or none, and settings without names, where it would be too large to travel.

    To be asked before a plan is adopted, so that its author follows what the others hear.

    Raises:
        BadWireData: it is too large even so.
    """
    size_bytes = len(encode(plan))
    for longest in SHORTER_REASONS:
        if size_bytes <= PLAN_LIMIT_BYTES:
            return plan
        plan = replace(plan, standby=tuple(_with_shorter_reason(each, longest) for each in plan.standby))
        size_bytes = len(encode(plan))
    if size_bytes > PLAN_LIMIT_BYTES:
        nameless = tuple(replace(each, name="") for each in plan.settings.overrides)
        plan = replace(plan, settings=replace(plan.settings, overrides=nameless))
        size_bytes = len(encode(plan))
    if size_bytes > PLAN_LIMIT_BYTES:
        raise BadWireData("plan", f"{size_bytes} bytes, at most {PLAN_LIMIT_BYTES} allowed")
    return plan


def _with_shorter_reason(standby: Standby, longest: int) -> Standby:
    if len(standby.reason) <= longest:
        return standby
    return replace(standby, reason=standby.reason[: longest - 1] + "…" if longest else "")
