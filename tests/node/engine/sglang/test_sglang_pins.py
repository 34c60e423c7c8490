"""That the installed SGLang is what our adapter was written against. Skipped where it is not installed, which it hardly
ever is beside us: it pins its own torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.sglang.range_runner import place_of

HERE = importlib.util.find_spec("sglang") is not None
installed = pytest.mark.skipif(not HERE, reason="SGLang is not installed: it has an environment of its own")


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 40))
def test_a_range_is_one_rank_of_a_pipeline(before: int, own: int, after: int) -> None:
    parts, rank = place_of(before, before + own, before + own + after)
    assert sum(parts) == before + own + after
    assert (sum(parts[:rank]), parts[rank]) == (before, own)
    assert all(parts)


@installed
def test_the_runner_is_made_and_asked_as_we_do() -> None:
    from sglang.srt.model_executor.model_runner import ModelRunner

    made = inspect.signature(ModelRunner.__init__).parameters
    assert {"model_config", "mem_fraction_static", "gpu_id", "nccl_port", "server_args"} <= set(made)
    assert "pp_proxy_tensors" in inspect.signature(ModelRunner.forward).parameters
    for name in ("alloc_memory_pool", "init_attention_backends", "init_cuda_graphs"):
        assert callable(getattr(ModelRunner, name))


@installed
def test_its_settings_and_batches_have_the_names_that_we_use() -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.server_args import ServerArgs

    from node.engine.base import StageSpec
    from node.engine.sglang.range_runner import settings

    ours = settings(StageSpec("/x", 0, 1, "float32", 1), "cpu", 8)
    assert set(ours) <= set(inspect.signature(ServerArgs).parameters)
    fields = {field.name for field in dataclasses.fields(ForwardBatch)}
    assert {"forward_mode", "batch_size", "input_ids", "req_pool_indices", "seq_lens", "out_cache_loc"} <= fields
    assert {"extend_seq_lens", "extend_prefix_lens", "extend_start_loc", "extend_seq_lens_cpu", "positions"} <= fields


@installed
def test_a_pipelines_place_can_be_told_after_the_groups_are_made() -> None:
    from sglang.srt import runtime_context
    from sglang.srt.distributed import bootstrap

    assert {"world_rank", "gpu_id"} <= set(inspect.signature(runtime_context.SpawnRanks).parameters)
    assert callable(runtime_context.get_parallel().override_permanently)
    assert isinstance(bootstrap._PARALLEL_INITIALISED, bool)
