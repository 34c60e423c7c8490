"""Layers [start, end) of a GGUF file on llama.cpp's own kernels: K-quants, experts, latent attention, rare families.

Its library comes with a wheel and is called through its C interface (`library`). A range of layers is a GGUF file of
its own for it (`cutting`), rows go in as embeddings and come out of the last layer's result (`context`).
"""
