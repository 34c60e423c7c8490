"""A GGUF model computes what the model that it was made of computes: numbers, metadata, positions, whatever the family.

The whole model comes straight from transformers; the stage reads config.json as it is made of GGUF's metadata, and the
weights as they lie in the file.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import save_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from node.engine.torch.checkpoint import open_checkpoint
from node.models.gguf_config import config_from
from node.models.gguf_tensors import check_tensors
from node.weights.gguf_split import read_model
from tests.node.engine.driving import load_here
from tests.node.weights.small_models import CONFIGS, VARIANTS, make_model, write_gguf_of

PROMPT = [int(i) for i in torch.randint(3, 160, (20,), generator=torch.Generator().manual_seed(5))]


def gguf_folder(model: Any, folder: Path, kind: str = "F32") -> Path:
    """A model folder of it, without a tokenizer."""
    folder.mkdir()
    path = write_gguf_of(model, folder / "model.gguf", kind)
    file = read_model(path)
    factors = {
        str(tensor.name): [float(value) for value in tensor.data]
        for tensor in GGUFReader(path).tensors
        if str(tensor.name).startswith("rope_")
    }
    config, sizes = config_from(file, factors)
    check_tensors(file, sizes, config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", [*CONFIGS, *VARIANTS])
def test_stages_of_a_gguf_file_give_the_logits_of_the_model_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    whole = make_model(name)
    folder = gguf_folder(whole, tmp_path / "model")
    layers = whole.config.num_hidden_layers
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    rows = torch.tensor(PROMPT)
    for start, end in pairwise([0, 1, layers]):
        stage = load_here(folder, start, end)
        rows = stage.whole.forward(rows, stage.whole.new_cache(), 0, logits=int(stage.whole.last))
    assert torch.allclose(rows[-1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "minimax_m2", "glm4_moe"])
def test_experts_that_are_stored_one_by_one_are_put_together(tmp_path: Path, name: str) -> None:
    whole = make_model(name)
    whole.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    stage = load_here(tmp_path, 0, whole.config.num_hidden_layers)
    found = stage.whole.forward(torch.tensor(PROMPT), stage.whole.new_cache(), 0, logits=1)[-1]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_quantised_tensors_are_those_that_transformers_reads(tmp_path: Path, name: str, kind: str) -> None:
    folder = gguf_folder(make_model(name), tmp_path / "model", kind)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        blank = transformers.AutoModelForCausalLM.from_config(config)
    # What `from_pretrained(gguf_file=…)` does inside; that door also asks for `accelerate`, which is not needed here.
    theirs = load_gguf_checkpoint(folder / "model.gguf", return_tensors=True, model_to_load=blank)["tensors"]
    checkpoint = open_checkpoint(folder, config)
    assert checkpoint.names() == theirs.keys()
    for tensor, values in checkpoint.read(set(checkpoint.names())):
        assert torch.equal(values.float(), theirs[tensor]), tensor


def test_a_gptq_checkpoint_computes_as_the_numbers_that_it_stands_for(tmp_path: Path) -> None:
    whole = make_model("llama")
    tensors, stands_for = {}, whole.state_dict()
    for name, values in whole.state_dict().items():
        if ".mlp." not in name and ".self_attn." not in name:
            tensors[name] = values.clone()
            continue
        rows, columns = values.shape
        quants = torch.randint(0, 16, (columns, rows), dtype=torch.int64)
        scales = (torch.rand(columns // 32, rows) / 50 + 0.001).half()
        base = name.removesuffix(".weight")
        places = 4 * torch.arange(8)
        tensors[f"{base}.qweight"] = (quants.view(-1, 8, rows) << places[None, :, None]).sum(1).to(torch.int32)
        tensors[f"{base}.qzeros"] = torch.full((columns // 32, rows // 8), 0x77777777, dtype=torch.int32)  # 8, less one
        tensors[f"{base}.scales"] = scales
        stands_for[name] = ((quants - 8).float() * scales.float().repeat_interleave(32, 0)).T.contiguous()
    whole.load_state_dict(stands_for)
    whole.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    method = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    stage = load_here(tmp_path, 0, whole.config.num_hidden_layers)
    found = stage.whole.forward(torch.tensor(PROMPT), stage.whole.new_cache(), 0, logits=1)[-1]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
