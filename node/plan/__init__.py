"""Decides who holds which layers and which nodes serve a request. Pure: no clock, no I/O, no torch."""

from node.plan.assign import Member, assign_layers
from node.plan.route import route

__all__ = ["Member", "assign_layers", "route"]
