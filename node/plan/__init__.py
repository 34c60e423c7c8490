"""Decides who holds which layers and which nodes serve a request. Pure: no clock, no I/O, no torch."""
