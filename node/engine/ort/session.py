"""A graph as a session of onnxruntime. Knows threads and memory, no models."""

from __future__ import annotations

import numpy as np

from node.engine import machine
from node.engine.ort.graph import Graph, Numbers
from node.engine.ort.library import ort

PROVIDERS = ["CPUExecutionProvider"]
QUIET = 3
"""Of the library's log: errors alone."""


def new_session(graph: Graph, threads: int) -> ort.InferenceSession:
    """Hand a graph over to the library, which keeps the numbers in the form that its kernels want; ours are released.

    Raises what the library raises.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    options.enable_mem_pattern = False  # one for each shape would be kept, and shapes change with each batch
    # nothing to fuse is left, and what the library moves it would move otherwise in another range of layers
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    spin = threads > 1 and threads == machine.core_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model, large = graph.model()
    values = [ort.OrtValue.ortvalue_from_numpy(_own(numbers)) for numbers in large.values()]
    if values:
        options.add_external_initializers(list(large), values)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    graph.constants.clear()
    return session


def _own(numbers: Numbers) -> Numbers:
    """Numbers that last: those that view a mapped file are copied, for what the library does not rearrange it reads
    where it lies as long as the session lives, and a file that is cut short under a mapping ends the process."""
    base: object = numbers
    while isinstance(base, np.ndarray):
        base = base.base
    return numbers if base is None else numbers.copy()
