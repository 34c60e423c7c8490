"""Keeps the plan true on this node: decides plans when it is the planner's turn, loads what the plan gives it."""
