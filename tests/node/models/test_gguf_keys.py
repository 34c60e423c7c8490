"""A key that changes what a model computes is honoured or refused by name; files that are no model are told as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from node.errors import UnsupportedModel
from node.models import identify, import_file
from node.models.gguf_config import config_from
from node.models.gguf_tokenizer import ends_by_text, tokenizer_files
from node.models.progress import ignore_progress
from node.weights.gguf_file import read_gguf

MakeGguf = Callable[..., Path]


def keys(**values: Any) -> Callable[[GGUFWriter], None]:
    """Writes these under their names, with a dot for each double underscore."""

    def write(writer: GGUFWriter) -> None:
        for name, value in values.items():
            key = name.replace("__", ".")
            match value:
                case bool():
                    writer.add_bool(key, value)
                case int():
                    writer.add_uint32(key, value)
                case float():
                    writer.add_float32(key, value)
                case str():
                    writer.add_string(key, value)
                case _:
                    writer.add_array(key, value)

    return write


def config(make_gguf: MakeGguf, arch: str = "llama", **values: Any) -> dict[str, Any]:
    return config_from(read_gguf(make_gguf(arch, extra=keys(**values))))[0]


@pytest.mark.parametrize(
    ("arch", "name", "value"),
    [
        ("llama", "llama__logit_scale", 0.0625),
        ("llama", "llama__residual_scale", 0.22),
        ("llama", "llama__embedding_scale", 12.0),
        ("llama", "llama__attention__scale", 0.015625),
        ("llama", "llama__attention__sliding_window", 128),
        ("llama", "llama__attn_logit_softcapping", 50.0),
        ("llama", "llama__final_logit_softcapping", 30.0),
        ("llama", "llama__attention__clamp_kqv", 8.0),
        ("llama", "llama__attention__max_alibi_bias", 8.0),
        ("llama", "llama__use_parallel_residual", True),
        ("llama", "llama__attention__causal", False),
        ("llama", "llama__rope__scaling__yarn_log_multiplier", 0.1),
        ("llama", "llama__rope__scaling__attn_factor", 1.2),
        ("llama", "llama__rope__scale_linear", 4.0),
        ("llama", "llama__something_new", 1),
        ("qwen2", "qwen2__rope__dimension_sections", [16, 24, 24, 0]),
        ("qwen3", "qwen3__pooling_type", 3),
        ("qwen3", "qwen3__expert_used_count", 8),
        ("llama", "tokenizer__ggml__add_eos_token", True),
        ("llama", "tokenizer__ggml__precompiled_charsmap", [1, 2, 3]),
        ("llama", "xielu__alpha_p", [0.1, 0.2]),
    ],
)
def test_a_key_that_changes_the_computation_is_refused_by_name(
    make_gguf: MakeGguf, tmp_path: Path, arch: str, name: str, value: Any
) -> None:
    path = make_gguf(arch, extra=keys(**{name: value}))
    with pytest.raises(UnsupportedModel, match=name.replace("__", r"\.")):
        import_file(path, tmp_path / "models", ignore_progress)


def test_keys_at_values_that_change_nothing_and_descriptions_are_taken(make_gguf: MakeGguf) -> None:
    plain = config(make_gguf)
    described = config(
        make_gguf,
        llama__logit_scale=1.0,
        llama__attention__scale=0.25,
        llama__attention__sliding_window=4096,
        llama__expert_count=0,
        llama__vocab_size=267,
        llama__use_parallel_residual=False,
        llama__rope__scaling__finetuned=False,
        general__tags=["a", "b"],
        quantize__imatrix__file="x",
        somebody__note="hello",
        tokenizer__ggml__fim_pre_token_id=3,
        tokenizer__ggml__add_eos_token=False,
    )
    assert plain == described


def test_rope_scaling_is_what_llama_cpp_takes_it_for(make_gguf: MakeGguf) -> None:
    assert config(make_gguf, llama__rope__scaling__factor=4.0)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert (
        config(make_gguf, llama__rope__scaling__type="none", llama__rope__scaling__factor=4.0)["rope_scaling"] is None
    )
    assert (
        config(make_gguf, llama__rope__scaling__type="linear", llama__rope__scaling__factor=1.0)["rope_scaling"] is None
    )
    yarn = config(
        make_gguf,
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=2.0,
        llama__rope__scaling__original_context_length=128,
        llama__rope__scaling__yarn_beta_fast=16.0,
        llama__rope__scaling__yarn_beta_slow=2.0,
    )["rope_scaling"]
    assert yarn == {
        "rope_type": "yarn",
        "factor": 2.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "original_max_position_embeddings": 128,
    }


def test_recommended_sampling_and_every_end_of_a_turn_are_taken_over(make_gguf: MakeGguf) -> None:
    path = make_gguf(
        extra=keys(
            general__sampling__temp=0.5,
            general__sampling__top_k=20,
            tokenizer__ggml__eot_token_id=0,
            tokenizer__ggml__eom_token_id=1,
        )
    )
    generation = json.loads(tokenizer_files(read_gguf(path), 1000)["generation_config.json"])
    assert generation["eos_token_id"] == [2, 0, 1]
    assert (generation["do_sample"], generation["temperature"], generation["top_k"]) == (True, 0.5, 20)


def test_the_end_of_a_turn_is_known_by_its_text_where_the_file_does_not_say(make_gguf: MakeGguf) -> None:
    generation = json.loads(tokenizer_files(read_gguf(make_gguf()), 1000)["generation_config.json"])
    assert generation["eos_token_id"] == [2, 0]  # <|im_end|>, as the file says, and <|endoftext|>


def test_beside_return_and_call_the_end_of_a_part_ends_no_answer() -> None:
    texts = ["<|start|>", "<|end|>", "<|return|>", "<|call|>", "</s>"]
    assert ends_by_text(texts, [3, 3, 3, 3, 1]) == [2, 3]
    assert ends_by_text(texts[:3], [3, 3, 3]) == [1, 2]


def test_of_templates_with_names_the_default_is_taken(make_gguf: MakeGguf) -> None:
    def named(writer: GGUFWriter) -> None:
        writer.add_chat_template([{"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}])

    path = make_gguf(extra=named)
    assert tokenizer_files(read_gguf(path), 1000)["chat_template.jinja"].startswith(b"{% for m")
    file = read_gguf(path)
    del file.metadata["tokenizer.chat_template"]
    assert tokenizer_files(file, 1000)["chat_template.jinja"] == b"rag"
    file.metadata["tokenizer.chat_template.default"] = "plain"
    assert tokenizer_files(file, 1000)["chat_template.jinja"] == b"plain"


@pytest.mark.parametrize(
    ("arch", "values", "what"),
    [
        ("llama", {"general__type": "adapter", "adapter__type": "lora"}, "a LoRA adapter"),
        ("llama", {"adapter__lora__alpha": 16.0}, "a LoRA adapter"),
        ("clip", {"clip__has_vision_encoder": True}, "a projector for pictures or sound"),
        ("llama", {"general__type": "imatrix"}, "an importance matrix"),
        ("controlvector", {}, "a control vector"),
    ],
)
def test_files_that_are_no_model_are_told_as_what_they_are(
    make_gguf: MakeGguf, tmp_path: Path, arch: str, values: dict[str, Any], what: str
) -> None:
    path = make_gguf(arch, extra=keys(**values))
    with pytest.raises(UnsupportedModel, match=what):
        identify(str(path), tmp_path / "models")


def test_a_vocabulary_alone_is_told_as_such(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="a vocabulary without weights"):
        identify(str(tmp_path / "vocab.gguf"), tmp_path / "models")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"quantization_config": {"quant_method": "aqlm"}}, r"quantised weights \(aqlm\)"),
        ({"quantization_config": {"quant_method": "fp8"}, "model_type": "bloom"}, "of the family bloom"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised weights"),
        ({"compression_config": {"format": "int8"}}, "quantised weights"),
        ({"is_encoder_decoder": True}, "encoder and decoder"),
    ],
)
def test_folders_that_no_engine_can_load_are_refused_at_import(
    make_folder: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    folder = make_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UnsupportedModel, match=what):
        import_file(folder, tmp_path / "models", ignore_progress)
    with pytest.raises(UnsupportedModel, match=what):
        identify(str(folder), tmp_path / "models")


def test_a_folder_with_an_adapter_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    for take in (
        lambda path: identify(path, tmp_path / "m"),
        lambda p: import_file(Path(p), tmp_path / "m", ignore_progress),
    ):
        with pytest.raises(UnsupportedModel, match="a LoRA adapter"):
            take(str(tmp_path / "lora"))
