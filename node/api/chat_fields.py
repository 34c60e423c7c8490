"""Names that a chat completion's body may have, as clients of many servers send them, and what we make of each.

A field is honoured, or it can change nothing in the answer and is taken, or it is refused by name: never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

HONOURED = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "stop", "seed"),
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k"),
    }
)

HARMLESS = frozenset(
    {
        # for the operator's books, caches and queues
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id"),
        *("prompt_cache_retention", "cache_salt", "cache_prompt", "priority", "keep_alive", "id_slot", "slot_id"),
        *("ttl", "session_id", "chat_id", "conversation_id"),
        # about calls of tools, of which there are none; about a guess of the answer, which only makes it faster
        *("parallel_tool_calls", "prediction", "guided_decoding_backend"),
        # parts of something that is off, or else refused by its own name
        *("repeat_last_n", "penalty_range", "mirostat_tau", "mirostat_eta", "xtc_threshold", "dynatemp_exponent"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "smoothing_curve"),
        # figures that are told anyway
        *("usage", "timings_per_token"),
    }
)
"""Taken with any value."""

_OFF: tuple[object, ...] = (False, 0, "", [], {})
_UNSUPPORTED = "is not supported"

NEUTRAL: Mapping[str, tuple[tuple[object, ...], str]] = {
    "n": ((1,), "only 1 answer per request is supported"),
    "best_of": ((1, 0), "only 1 answer per request is supported"),
    "tools": (_OFF, "tools are not supported"),
    "tool_choice": (("none", "auto"), "tools are not supported"),
    "functions": (_OFF, "functions are not supported"),
    "function_call": (("none", "auto"), "functions are not supported"),
    "logprobs": ((False, 0), "logprobs are not supported"),
    "top_logprobs": ((0,), "logprobs are not supported"),
    "prompt_logprobs": ((False, 0), "logprobs are not supported"),
    "n_probs": ((0,), "logprobs are not supported"),
    "response_format": (({"type": "text"},), 'only {"type": "text"} is supported'),
    "modalities": ((["text"], []), 'only ["text"] is supported'),
    "verbosity": (("medium",), 'only "medium" is supported'),
    "frequency_penalty": ((0,), _UNSUPPORTED),
    "presence_penalty": ((0,), _UNSUPPORTED),
    "repetition_penalty": ((1,), _UNSUPPORTED),
    "repeat_penalty": ((1,), _UNSUPPORTED),
    "encoder_repetition_penalty": ((1,), _UNSUPPORTED),
    "length_penalty": ((1,), _UNSUPPORTED),
    "typical_p": ((1,), _UNSUPPORTED),
    "tfs_z": ((1,), _UNSUPPORTED),
    "top_n_sigma": ((-1, 0), _UNSUPPORTED),
    "n_keep": ((0, -1), _UNSUPPORTED),
    "skip_special_tokens": ((True,), _UNSUPPORTED),
    "spaces_between_special_tokens": ((True,), _UNSUPPORTED),
    "add_generation_prompt": ((True,), _UNSUPPORTED),
    "detokenize": ((True,), _UNSUPPORTED),
    "include_reasoning": ((True,), _UNSUPPORTED),
    # off is no neutral value of these: a model may think, or vary its answer, unless told otherwise
    **dict.fromkeys(
        (
            *("reasoning_effort", "reasoning_format", "thinking", "thinking_budget", "enable_thinking", "think"),
            *("do_sample",),
        ),
        ((), _UNSUPPORTED),
    ),
    "reasoning": (({},), _UNSUPPORTED),
    **dict.fromkeys(
        (
            *("logit_bias", "min_p", "top_a", "min_tokens", "min_keep", "ignore_eos", "stop_token_ids", "bad_words"),
            *("allowed_token_ids", "mirostat", "mirostat_mode", "xtc_probability", "dry_multiplier", "dynatemp_range"),
            *("smoothing_factor", "penalty_alpha", "epsilon_cutoff", "eta_cutoff", "use_beam_search"),
            *("no_repeat_ngram_size", "echo", "suffix", "return_tokens"),
            *("return_token_ids", "include_stop_str_in_output", "continue_final_message", "truncate_prompt_tokens"),
            *("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
            *("guided_whitespace_pattern", "structured_outputs", "structural_tag", "regex", "ebnf", "format"),
            *("chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs", "extra_body", "options"),
            *("audio", "web_search_options", "samplers", "lora", "transforms", "models", "provider", "plugins"),
            *("prompt", "input", "images", "safe_prompt", "prefix", "logits_processors", "vllm_xargs", "raw"),
        ),
        (_OFF, _UNSUPPORTED),
    ),
}
"""Values that ask for what we do anyway; any other one is refused with this reason."""

ALSO_KNOWN: Mapping[str, str] = {
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "random_seed": "seed",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_length": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "system": "messages",
    "streaming": "stream",
}
"""Names that other programs have for what is honoured here under another one."""


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether the value is one of these; 0 is no false and 1 no true, 0.0 and 0 are equal."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def unknown(name: str) -> str:
    """What to say of a name that is not known: the one that may have been meant."""
    if name in ALSO_KNOWN:
        return f"is not known here; use {ALSO_KNOWN[name]}"
    near = get_close_matches(name[:100], [*HONOURED, *HARMLESS, *NEUTRAL], n=1, cutoff=0.75)
    return f"is not known here; did you mean {near[0]}?" if near else "is not known here"
