"""Layers through transformers' own modelling code on torch: the reference, for every family that transformers knows, on
processors and on every graphics chip that torch computes on. Starts at `backend`.
"""
