"""A stream's contents in a context of another shape: the next logits have the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from node.engine.llamacpp.carrying import State, carried
from node.engine.llamacpp.context import Context, Piece
from node.engine.llamacpp.library import open_library
from node.engine.llamacpp.model import Model, Placement, load_whole
from node.engine.llamacpp.reading import read_whole
from node.engine.llamacpp.streams import Shape
from node.errors import EngineError
from tests.node.engine.llamacpp.test_llamacpp_families import LINEAR, SECTIONS, WINDOW, finished
from tests.node.engine.llamacpp.tiny_models import EXPERTS, LATENT, Value, save_tiny

KINDS: dict[str, tuple[str, dict[str, Value]]] = {
    "all keys and values": ("llama", {}),
    "windows": ("gemma3", WINDOW),
    "latent": ("deepseek2", {**EXPERTS, **LATENT, "leading_dense_block_count": 1}),
    "linear layers between": ("qwen3next", {**EXPERTS, **LINEAR}),
    "with sections": ("qwen2vl", SECTIONS),
    "states alone": (
        "mamba",
        {"ssm.inner_size": 128, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.time_step_rank": 4},
    ),
}
IDS = np.random.default_rng(3).integers(3, 128, 60).astype(np.int32)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, library: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    architecture, changes = KINDS[request.param]
    folder = tmp_path_factory.mktemp("kind")
    save_tiny(folder, architecture, **{key.replace(".", "__"): value for key, value in changes.items()})
    whole = read_whole(folder)
    assert whole is not None
    loaded = finished(load_whole(open_library(), whole, Placement(), "all"))
    yield loaded
    loaded.free()


def context(model: Model, shape: Shape) -> Context:
    return Context(open_library(), model, shape, 4, 1, hidden=False)


def test_it_goes_on_with_the_same_bits_in_any_shape(model: Model) -> None:
    before = context(model, Shape(4, 256))
    before.run(IDS[:10], [Piece(1, 0, 10, 0)])  # a neighbour
    before.run(IDS[:50], [Piece(2, 0, 50, 0)])
    state = before.take_state(2)
    expected = [before.run(IDS[at : at + 1], [Piece(2, at, 1, 1)]).copy() for at in range(50, 60)]
    before.free()
    for shape, stream in ((Shape(1, 512), 0), (Shape(2, 256), 1), (Shape(8, 256), 5), (Shape(4, 512), 2)):
        after = context(model, shape)
        after.put_state(stream, state)
        for at, logits in zip(range(50, 60), expected, strict=True):
            assert np.array_equal(after.run(IDS[at : at + 1], [Piece(stream, at, 1, 1)]), logits)
        after.free()


def test_contents_that_are_laid_out_otherwise_are_not_carried() -> None:
    with pytest.raises(EngineError, match="otherwise than is known"):
        carried(State(bytes(8) + bytes([9, 0, 0, 0]) + b"cells" + bytes(4), 0, 2, 0, True), 1)


def test_what_is_carried_within_one_shape_is_left_as_it_is() -> None:
    assert carried(State(b"whatever", 1, 4, 0, True), 4) == b"whatever"
