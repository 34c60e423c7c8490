"""Decides who holds which layers and which nodes serve a request. Pure: no clock, no I/O, no torch.

The names below are loaded when they are first used: the search needs numpy, and most of a node's life needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.plan.machines.pool_file import read_pool as read_pool
    from node.plan.moving.replan import replan as replan
    from node.plan.outlook.predict import predict as predict
    from node.plan.placement.allocate import allocate as allocate
    from node.plan.placement.allocation import Allocation as Allocation
    from node.plan.placement.evaluate import evaluate as evaluate
    from node.plan.placement.water_filling import water_fill as water_fill
    from node.plan.routing.disjoint import route_disjoint as route_disjoint
    from node.plan.routing.router import route as route

__all__ = [
    "Allocation",
    "allocate",
    "evaluate",
    "predict",
    "read_pool",
    "replan",
    "route",
    "route_disjoint",
    "water_fill",
]

_HOMES = {
    "Allocation": "placement.allocation",
    "allocate": "placement.allocate",
    "evaluate": "placement.evaluate",
    "predict": "outlook.predict",
    "read_pool": "machines.pool_file",
    "replan": "moving.replan",
    "route": "routing.router",
    "route_disjoint": "routing.disjoint",
    "water_fill": "placement.water_filling",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
