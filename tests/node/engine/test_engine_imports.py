"""What the node imports of the engine is light, and what the worker imports of us is little."""

from __future__ import annotations

import subprocess
import sys

import node.engine
from node.engine import base


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_nodes_side_never_imports_a_tensor_library() -> None:
    modules = modules_after("import node.engine.base, node.engine.process")
    assert not modules & {"torch", "transformers", "safetensors", "numpy", "mlx", "sglang"}


def test_the_worker_needs_nothing_of_ours_but_engine_weights_wire_and_errors() -> None:
    modules = modules_after("import node.engine.worker, node.engine.torch.backend, node.engine.torch.loading")
    ours = {module.split(".")[1] for module in modules if module.startswith("node.")}
    assert ours == {"engine", "weights", "wire", "errors"}
    assert not modules & {"trio", "libp2p", "textual", "rich.console"}


def test_the_room_exports_its_narrow_edge() -> None:
    public = {name for name, value in vars(base).items() if getattr(value, "__module__", "") == base.__name__}
    assert public == set(node.engine.__all__)
