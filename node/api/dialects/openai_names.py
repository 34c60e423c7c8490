"""Names that bodies in OpenAI's dialects may have, as clients of many servers send them, and what we make of each."""

from __future__ import annotations

from collections.abc import Mapping

from node.api.dialects.fields import OFF, UNSUPPORTED, Neutral

HARMLESS = frozenset(
    {
        # for the operator's books, caches and queues
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id"),
        *("prompt_cache_retention", "prompt_cache_options", "cache_salt", "cache_prompt", "priority", "keep_alive"),
        *("id_slot", "slot_id", "ttl", "session_id", "chat_id", "conversation_id"),
        # about a guess of the answer, which only makes it faster
        *("prediction", "guided_decoding_backend"),
        # parts of something that is off, or else refused by its own name
        *("repeat_last_n", "penalty_range", "mirostat_tau", "mirostat_eta", "xtc_threshold", "dynatemp_exponent"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "smoothing_curve"),
        # figures that are told anyway
        *("usage", "timings_per_token"),
    }
)
"""Taken with any value."""

SAMPLING: Neutral = {
    "logprobs": ((False,), "logprobs are not supported"),
    "top_logprobs": ((0,), "logprobs are not supported"),
    "prompt_logprobs": ((False, 0), "logprobs are not supported"),
    "n_probs": ((0,), "logprobs are not supported"),
    "frequency_penalty": ((0,), UNSUPPORTED),
    "presence_penalty": ((0,), UNSUPPORTED),
    "repetition_penalty": ((1,), UNSUPPORTED),
    "repeat_penalty": ((1,), UNSUPPORTED),
    "encoder_repetition_penalty": ((1,), UNSUPPORTED),
    "length_penalty": ((1,), UNSUPPORTED),
    "typical_p": ((1,), UNSUPPORTED),
    "tfs_z": ((1,), UNSUPPORTED),
    "top_n_sigma": ((-1, 0), UNSUPPORTED),
    "n_keep": ((0, -1), UNSUPPORTED),
    "skip_special_tokens": ((True,), UNSUPPORTED),
    "spaces_between_special_tokens": ((True,), UNSUPPORTED),
    "detokenize": ((True,), UNSUPPORTED),
    # off is no neutral value of it: a model may vary its answer unless told otherwise
    "do_sample": ((), UNSUPPORTED),
    **dict.fromkeys(
        (
            *("logit_bias", "min_p", "top_a", "min_tokens", "min_keep", "ignore_eos", "stop_token_ids", "bad_words"),
            *("allowed_token_ids", "mirostat", "mirostat_mode", "xtc_probability", "dry_multiplier", "dynatemp_range"),
            *("smoothing_factor", "penalty_alpha", "epsilon_cutoff", "eta_cutoff", "use_beam_search"),
            *("no_repeat_ngram_size", "return_tokens", "return_token_ids", "include_stop_str_in_output"),
            *("truncate_prompt_tokens", "grammar", "json_schema", "guided_json", "guided_regex", "guided_choice"),
            *("guided_grammar", "guided_whitespace_pattern", "structured_outputs", "structural_tag", "regex", "ebnf"),
            *("format", "mm_processor_kwargs", "extra_body", "options", "samplers", "lora", "transforms", "models"),
            *("provider", "plugins", "input", "images", "logits_processors", "vllm_xargs", "raw"),
        ),
        (OFF, UNSUPPORTED),
    ),
}
"""Of how tokens are chosen, in chat and in completions."""

CHAT: Neutral = {
    **SAMPLING,
    "best_of": ((1, 0), "best_of needs logprobs, which are not supported; use n"),
    "functions": (OFF, "functions are not supported; use tools"),
    "function_call": (("none", "auto"), "functions are not supported; use tools"),
    "response_format": (({"type": "text"},), 'only {"type": "text"} is supported'),
    "modalities": ((["text"], []), 'only ["text"] is supported'),
    "verbosity": (("medium",), 'only "medium" is supported'),
    "add_generation_prompt": ((True, False), UNSUPPORTED),
    "include_reasoning": ((True,), UNSUPPORTED),
    "reasoning_format": (("auto", "deepseek"), 'thoughts are told as reasoning_content; only "auto" is supported'),
    "thinking_budget": ((-1,), UNSUPPORTED),
    **dict.fromkeys(
        (
            *("echo", "suffix", "chat_template", "documents", "audio", "web_search_options", "prompt", "safe_prompt"),
            "prefix",
        ),
        (OFF, UNSUPPORTED),
    ),
}

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
