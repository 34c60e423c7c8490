"""Starts the worker under any interpreter: `python -P bootstrap.py`, or with `fork-server DESCRIPTOR BACKENDS` what
forks workers.

The worker may run under an interpreter with an environment of its own, so our folder must not come onto its search
path: beside `node` lie our environment's torch and transformers, which would hide the ones that belong there. So the
package `node` alone is made known, by its place.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def make_node_known() -> None:
    """Put the package `node` that this file belongs to into `sys.modules`."""
    folder = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "node", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not the package node; install Parallax again")
    package = importlib.util.module_from_spec(spec)
    sys.modules["node"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    make_node_known()
    if len(sys.argv) > 1:
        from node.engine.fork_server import main as serve_forks

        serve_forks(int(sys.argv[2]), sys.argv[3])
    else:
        from node.engine.worker import main

        main()
