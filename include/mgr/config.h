/*
 * The configuration of a run, as the user wrote it, typed and range-checked.
 *
 * Names of formats, methods and router inits stay text here: who owns a registry resolves them,
 * and mgr_config_fail reports a wrong one with the place where it was written.
 */
#ifndef MGR_CONFIG_H
#define MGR_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MGR_CONFIG_TEXT 1024

typedef struct mgr_config {
    char mode[16];            /* upcycle | reshard */
    uint64_t memory_per_rank; /* bytes */

    struct {
        char path[MGR_CONFIG_TEXT];
        char format[32];    /* auto | a registered source format */
        char iteration[32]; /* latest | release | a number */
        char tokenizer[MGR_CONFIG_TEXT];
        char unknown[16]; /* refuse | warn */
    } source;

    /* What the checkpoint should say itself; 0 (or a negative number) is "not given". Given values
     * are cross-checked against args and tensors. */
    struct {
        uint64_t num_layers, hidden_size, ffn_hidden_size, num_attention_heads, num_query_groups;
        uint64_t kv_channels, vocab_size, max_position_embeddings, moe_router_topk;
        uint64_t tensor_parallel, pipeline_parallel;
        double norm_epsilon, rotary_base;
        int64_t bos_token_id, eos_token_id; /* -1: not given */
    } model;

    struct {
        char method[32];
        uint64_t experts, top_k;
        double ratio;
        uint64_t seed;
        char index_sets[16]; /* shared | independent */
        bool shuffle;
        char router[32];
        double router_std, noise_std;
        char moe_layer_freq[MGR_CONFIG_TEXT]; /* as Megatron's: a number, or a list expression */
    } upcycle;

    struct {
        char path[MGR_CONFIG_TEXT];
        char format[32];
        uint64_t expert_parallel, tensor_parallel, pipeline_parallel;
        uint64_t expert_tensor_parallel;                /* 0: as tensor_parallel */
        uint64_t virtual_pipeline;                      /* chunks of a stage */
        uint64_t first_stage_layers, last_stage_layers; /* 0: as the others */
        uint64_t make_vocab_size_divisible_by, iteration;
        char names[16];        /* auto | te | local | per-expert | fused */
        char expert_names[16]; /* sequential | grouped | grouped-old */
        char dist_keys[16];    /* auto | stacked | per-layer */
        char dtype[16];        /* source | bfloat16 | float16 | float32 */
        uint64_t max_shard_size;
        bool sha256;
        char compression[16]; /* none | deflate */
    } target;

    /* Where each key of the schema was written: line and column (1-based), 0 for a default; -1 for
     * --set. Indexed like the schema. */
    char file[MGR_CONFIG_TEXT];
    int32_t line[64], column[64];
} mgr_config;

/* One key of the schema: the parser, the dump and --help are driven by this table. */
typedef enum mgr_key_kind {
    MGR_KEY_TEXT,
    MGR_KEY_CHOICE, /* text, one of `choices` ("a|b|c") */
    MGR_KEY_UINT,
    MGR_KEY_INT,
    MGR_KEY_REAL,
    MGR_KEY_BOOL,
    MGR_KEY_BYTES
} mgr_key_kind;

typedef struct mgr_key {
    const char *name; /* "upcycle.experts" */
    mgr_key_kind kind;
    size_t offset, size; /* of the field in mgr_config */
    bool required;
    const char *fallback; /* text of the default, NULL if there is none */
    const char *choices;  /* CHOICE */
    double min, max;      /* UINT, INT, REAL, BYTES */
    const char *help;
} mgr_key;

/* The schema; *n keys. */
const mgr_key *mgr_config_schema(size_t *n);

/* Parse YAML `text` (`len` bytes), named `file` in messages, into *config with defaults filled in,
 * then apply the `n_sets` overrides "key=value" of the command line, then check required keys.
 * Refused, as "file:line:column: ...": unknown key (with the nearest one), duplicate key, wrong
 * type, value out of range, anchors, aliases, tags, several documents. Errors: MGR_ERR_CONFIG;
 * MGR_ERR_USAGE for a malformed --set. Local. */
int mgr_config_parse(mgr_config *config, const char *file, const char *text, size_t len,
                     const char *const *sets, size_t n_sets, mgr_err *err) MGR_NODISCARD;

/* Report a wrong value of `key` (a schema name) at the place where it was written. */
int mgr_config_fail(const mgr_config *config, const char *key, mgr_err *err, const char *fmt, ...)
    MGR_PRINTF(4, 5);

/* The effective configuration as YAML that parses back to the same values. */
struct mgr_buf;
int mgr_config_dump(const mgr_config *config, struct mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#ifdef __cplusplus
}
#endif
#endif
