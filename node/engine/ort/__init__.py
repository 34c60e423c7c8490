"""Layers on onnxruntime: graphs made from config and weights, one for a few layers each. Needs no torch.

config, shape     what the layers of a model are like
linear, graph     matrices and nodes in the form that the library takes
layers, experts, latent    one layer's nodes
parts, part_store          a few layers as a session; who holds which
kv_memory, slots, tables   memory for keys and values, and who has it; rotary tables
frames, chain, stage       a batch's way through
"""
