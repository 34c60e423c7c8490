"""Each backend tells how much of a range is there while it loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.engine.backend import BACKENDS
from node.engine.base import BackendName, StageSpec


@pytest.mark.parametrize("name", ["torch", "ort"])
def test_the_share_that_is_there_grows_to_all_of_it(name: BackendName, tiny_folder: Path) -> None:
    backend = BACKENDS[name].open("cpu")
    backend.set_threads(1)
    spec = StageSpec(str(tiny_folder), 0, 6, "float32", 1 << 22, backend=name)
    shares = [share for share in backend.load(spec) if share is not None]
    assert shares == sorted(shares)
    assert 0.0 < shares[0] < 1.0
    assert shares[-1] == 1.0
