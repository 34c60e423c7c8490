"""Layers through SGLang's model runner, under an interpreter with an environment of its own: it pins torch and
transformers exactly, so it cannot share ours. Starts at `backend`.
"""
