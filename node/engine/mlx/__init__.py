"""Layers through mlx-lm's models: for Apple silicon, where it computes on the graphics chip. Starts at `backend`.

On Linux the same code computes on the processor, slowly: there it is for tests.
"""
