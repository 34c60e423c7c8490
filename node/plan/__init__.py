"""Decides who holds which layers and which nodes serve a request. Pure: no clock, no I/O, no torch.

The names below are loaded when they are first used: the search needs numpy, and most of a node's life needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.plan.allocation import Allocation as Allocation
    from node.plan.change import replan as replan
    from node.plan.disjoint import route_disjoint as route_disjoint
    from node.plan.placement import allocate as allocate
    from node.plan.pool_file import read_pool as read_pool
    from node.plan.prediction import predict as predict
    from node.plan.routing import route as route
    from node.plan.stages import minimal_stages as minimal_stages
    from node.plan.water import water_fill as water_fill

__all__ = [
    "Allocation",
    "allocate",
    "minimal_stages",
    "predict",
    "read_pool",
    "replan",
    "route",
    "route_disjoint",
    "water_fill",
]

_HOMES = {
    "Allocation": "allocation",
    "allocate": "placement",
    "minimal_stages": "stages",
    "predict": "prediction",
    "read_pool": "pool_file",
    "replan": "change",
    "route": "routing",
    "route_disjoint": "disjoint",
    "water_fill": "water",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
