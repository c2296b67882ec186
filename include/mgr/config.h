/*
 * The configuration of a run, as the user wrote it, typed and range-checked.
 *
 * Names of formats, methods and router inits stay text here: who owns a registry resolves them.
 * Each of them declares the keys that it reads; a key that none of the chosen ones reads is an
 * error.
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
#define MGR_CONFIG_MAP 4096
#define MGR_CONFIG_MAX_KEYS 128
#define MGR_CONFIG_SOURCES 16
#define MGR_CONFIG_SOURCE_KEYS 12
#define MGR_PLACE_SET (-1) /* "line" of a key that --set gave */

/* A key that the user wrote, and where: line and column (1-based), or MGR_PLACE_SET. */
typedef struct mgr_place {
    char key[48];
    int32_t line, column;
} mgr_place;

/* A checkpoint to read. */
typedef struct mgr_config_source {
    char path[MGR_CONFIG_TEXT];
    char format[32];    /* auto | a registered source format */
    char iteration[32]; /* latest | release | a number */
    char tokenizer[MGR_CONFIG_TEXT];
    char config[MGR_CONFIG_TEXT]; /* config.json, where a format has none */
    char weights[16];             /* auto | masters | copies */
    char unknown[16];             /* refuse | warn */
    char mtp[16];                 /* keep | drop */
    bool allow_nonfinite;
    bool sha256;
    unsigned planes; /* no key: what the run reads beside the weights (a set of mgr_plane) */
} mgr_config_source;

/* One of 'sources', and where its keys were written, under their names in 'source'. */
typedef struct mgr_config_listed {
    mgr_config_source is;
    mgr_place written[MGR_CONFIG_SOURCE_KEYS];
    uint32_t n_written;
} mgr_config_listed;

typedef struct mgr_config {
    char mode[16];            /* upcycle | reshard */
    uint64_t memory_per_rank; /* bytes */
    char io_threads[16];      /* auto | a number */

    mgr_config_source source;
    mgr_config_listed sources[MGR_CONFIG_SOURCES]; /* 'source' is one of these in turn; */
    uint32_t n_sources;                            /* 0 where there is one alone */

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
        uint64_t expert_width; /* 0: as the dense FFN */
        uint64_t slices;       /* the same, as what the dense FFN is cut into; 0: not given */
        char cut[16];          /* slices | shuffled */
        char scale[16];        /* none | published | exact */
        bool router_pre_softmax;
        char shared_expert[16]; /* none | whole | half | slices */
        uint64_t shared_slices; /* of 'slices' */
        bool shared_gate;       /* the shared expert has a gate */
        char router_file[MGR_CONFIG_TEXT];
        char experts_from[MGR_CONFIG_TEXT]; /* "0-3,7"; empty: all, as often as it takes */
        char experts_file[MGR_CONFIG_TEXT]; /* the same for each layer */
        char neurons_file[MGR_CONFIG_TEXT]; /* the neurons of each expert */
        char layers_from[MGR_CONFIG_TEXT];  /* "0-3,2-5"; empty: each once */
        double expert_weight;               /* 0: 1 over the number of experts */
        char others[16];                    /* average | base | equal */
        char init[16];                      /* huggingface | megatron */
        double init_std;                    /* 0: the source's */
        double ratio;
        char layer_ratio[MGR_CONFIG_TEXT]; /* "0.2 to 0.8" or one for each layer; empty: ratio */
        char matrix_ratio[64];             /* factors for gate, up, down; empty: 1 */
        char redraw_mean[16];              /* own | zero */
        double redraw_std;                 /* 0: of what is replaced */
        uint64_t seed;
        char index_sets[16]; /* shared | independent */
        bool shuffle;
        char router[32];
        double router_std, router_noise, noise_std;
        char moe_layer_freq[MGR_CONFIG_TEXT]; /* as Megatron's: a number, or a list expression */
        char encoder_moe_layer_freq[MGR_CONFIG_TEXT]; /* empty: the same */
    } upcycle;

    struct {
        char path[MGR_CONFIG_TEXT];
        char format[32];
        uint64_t expert_parallel, tensor_parallel, pipeline_parallel;
        uint64_t expert_tensor_parallel;                /* 0: as tensor_parallel */
        uint64_t virtual_pipeline;                      /* chunks of a stage */
        uint64_t first_stage_layers, last_stage_layers; /* 0: as the others */
        uint64_t make_vocab_size_divisible_by, iteration;
        uint64_t data_parallel, sub_group_size; /* of ZeRO-3's files; 0: a universal checkpoint */
        char optimizer[16];                     /* none | keep */
        char run_folder[16];                    /* deepspeed | moe-recipes */
        char names[16];                         /* auto | te | local | per-expert | fused */
        char expert_names[16];                  /* sequential | grouped | grouped-old */
        char dist_keys[16];                     /* auto | stacked | per-layer */
        char dtype[16];                         /* source | bfloat16 | float16 | float32 */
        char model_class[32];                   /* auto | a model_type of transformers */
        uint64_t max_shard_size;
        bool sha256;
        char compression[16];        /* none | deflate */
        char config[MGR_CONFIG_MAP]; /* fields of config.json to set: a JSON object, "" for none */
    } target;

    char file[MGR_CONFIG_TEXT];
    mgr_place written[MGR_CONFIG_MAX_KEYS];
    uint32_t n_written;
} mgr_config;

/* One key: the parser, the dump and --help are driven by tables of these (mgr/keys.h). */
typedef enum mgr_key_kind {
    MGR_KEY_TEXT,
    MGR_KEY_PATH,   /* text in which nothing is expanded, so "~" and "$NAME" are refused */
    MGR_KEY_CHOICE, /* text, one of `choices` ("a|b|c"; "N" is any number) */
    MGR_KEY_UINT,
    MGR_KEY_INT,
    MGR_KEY_REAL,
    MGR_KEY_BOOL,
    MGR_KEY_BYTES,
    MGR_KEY_MAP /* keys of the user's own: kept as the text of a JSON object */
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

/* Who reads a key. A key may have several owners, of one kind, each with its own choices, default
 * and help; field, type and range are the same for all. */
typedef enum mgr_owner {
    MGR_OWNER_ALL,    /* every run */
    MGR_OWNER_MODE,   /* runs of that 'mode' */
    MGR_OWNER_SOURCE, /* those whose 'source.format' is that */
    MGR_OWNER_TARGET, /* ... 'target.format' */
    MGR_OWNER_METHOD, /* ... 'upcycle.method' */
    MGR_OWNER_ROUTER, /* ... 'upcycle.router' */
    MGR_OWNER_COUNT
} mgr_owner;

typedef struct mgr_key_table {
    mgr_owner kind;
    const char *owner; /* its name; NULL for MGR_OWNER_ALL */
    const mgr_key *keys;
    size_t n;
} mgr_key_table;

/* All tables: table `idx`, NULL behind the last. Every name that a format, method or router can be
 * chosen by has a table, maybe an empty one. */
typedef const mgr_key_table *mgr_schema(size_t idx);

/* The longest configuration file that is read, in bytes. */
#define MGR_CONFIG_MOST ((uint64_t)1 << 20)

/* The schema of everything that this program has registered. */
const mgr_key_table *mgr_config_tables(size_t idx);

/* Parse YAML `text` (`len` bytes), named `file` in messages, into *config with defaults filled in,
 * then apply the `n_sets` overrides "key=value" of the command line, then mgr_config_settle.
 * Refused, as "file:line:column: ...": unknown key (with the nearest one), duplicate key, wrong
 * type, value out of range, anchors, aliases, tags, several documents. Errors: MGR_ERR_CONFIG;
 * MGR_ERR_USAGE for a malformed --set. Local. */
int mgr_config_parse(mgr_config *config, mgr_schema *schema, const char *file, const char *text,
                     size_t len, const char *const *sets, size_t n_sets,
                     mgr_err *err) MGR_NODISCARD;

/* Check what was written against the formats, method and router that are chosen: unknown names,
 * keys that none of them owns, missing ones; then fill in the owners' defaults. To be called again
 * when 'source.format: auto', which owns every source's keys, has been replaced by what was found.
 * Errors: as above. Local. */
int mgr_config_settle(mgr_config *config, mgr_schema *schema, mgr_err *err) MGR_NODISCARD;

/* Report a wrong value of `key` ("target.names") at the place where it was written. */
int mgr_config_fail(const mgr_config *config, const char *key, mgr_err *err, const char *fmt, ...)
    MGR_PRINTF(4, 5);

/* Make `source` entry `idx` of 'sources', with the places of its keys; nothing without a list. And
 * take what `source` has become back into that entry. Local. */
void mgr_config_use_source(mgr_config *config, uint32_t idx);
void mgr_config_keep_source(mgr_config *config, uint32_t idx);

/* Where the user wrote `key`; NULL if nowhere. */
const mgr_place *mgr_config_place(const mgr_config *config, const char *key);

/* A construction that reads some keys of 'upcycle' alone: refuse the first written one with another
 * value than its default that is not among `allowed`, up to NULL: "'KEY' is WHY". Local. */
int mgr_config_keep_to(const mgr_config *config, mgr_schema *schema, const char *const *allowed,
                       const char *why, mgr_err *err) MGR_NODISCARD;

/* The effective configuration, of the keys that apply, as YAML that parses back to the same. */
struct mgr_buf;
int mgr_config_dump(const mgr_config *config, mgr_schema *schema, struct mgr_buf *out,
                    mgr_err *err) MGR_NODISCARD;

#ifdef __cplusplus
}
#endif
#endif
