/*
 * Reading pickles of protocols 2 to 5 without running anything.
 *
 * A small virtual machine follows the opcodes and builds a graph of typed nodes in an arena. A
 * GLOBAL becomes a node that holds two names, a call (REDUCE, NEWOBJ, NEWOBJ_EX) a node that holds
 * the callable, its arguments, its state (BUILD) and its items; nothing is ever looked up or run.
 * Globals that are not on an allow list are refused. Byte-level facts: src/fmt/README.md.
 *
 * The graph keeps object identity: what a pickle shares is one node, and a list can contain
 * itself. Walk it with an explicit stack and a bound on the steps, never by recursion.
 */
#ifndef MGR_FMT_PICKLE_H
#define MGR_FMT_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/err.h"

typedef enum mgr_node_kind {
    MGR_NODE_NONE,
    MGR_NODE_BOOL,      /* i: 0 or 1 */
    MGR_NODE_INT,       /* i */
    MGR_NODE_BIGINT,    /* s: two's complement, little-endian; more than 64 bits */
    MGR_NODE_REAL,      /* r */
    MGR_NODE_TEXT,      /* s: UTF-8 in which lone surrogates are let pass */
    MGR_NODE_BYTES,     /* s: bytes and bytearray, also in their spelling of protocol 2 */
    MGR_NODE_TUPLE,     /* c */
    MGR_NODE_LIST,      /* c */
    MGR_NODE_SET,       /* c: EMPTY_SET of protocol 4; protocol 2 has a call of set */
    MGR_NODE_FROZENSET, /* c */
    MGR_NODE_DICT,      /* c: key, value, key, value, ... */
    MGR_NODE_GLOBAL,    /* g */
    MGR_NODE_OBJECT,    /* c: items, and the call behind them */
    MGR_NODE_PERSID,    /* persid: what BINPERSID took from the stack, a tuple for torch */
    MGR_NODE_KINDS
} mgr_node_kind;

/* What the items of an object are: SETITEM(S) gives pairs, APPEND(S) and ADDITEMS elements. */
typedef enum mgr_node_holds {
    MGR_HOLDS_NOTHING,
    MGR_HOLDS_PAIRS,
    MGR_HOLDS_ELEMENTS
} mgr_node_holds;

typedef struct mgr_node mgr_node;

/* How an object came about. */
typedef struct mgr_call {
    const mgr_node *callable; /* a GLOBAL, or the object getattr(GLOBAL, text) */
    const mgr_node *args;     /* always a TUPLE */
    const mgr_node *kwargs;   /* a DICT, or NULL */
    const mgr_node *state;    /* of BUILD, or NULL */
    bool newobj;              /* NEWOBJ or NEWOBJ_EX, otherwise REDUCE */
} mgr_call;

struct mgr_node {
    uint8_t kind;  /* mgr_node_kind */
    uint8_t holds; /* mgr_node_holds, of an object */
    uint64_t at;   /* the byte of the opcode that made it, limits->base included */
    union {
        int64_t i;
        double r;
        struct {
            const char *bytes; /* NUL-terminated behind the last byte */
            size_t len;
        } s;
        struct {
            const char *module, *name;
        } g;
        struct {
            mgr_node **items;
            size_t n; /* pairs count twice */
            mgr_call *call;
        } c;
        const mgr_node *persid;
    } u;
};

/* One line of an allow list: exact, or with one '*' at the start or the end of either name. */
typedef struct mgr_pickle_rule {
    const char *module, *name;
} mgr_pickle_rule;

/* What checkpoints of torch (torch.save files and .metadata of torch.distributed.checkpoint),
 * Megatron-LM and DeepSpeed hold. */
extern const mgr_pickle_rule mgr_pickle_torch_rules[];
extern const size_t mgr_pickle_n_torch_rules;

/* Whether a rule covers `module.name`, by its Python 2 or its Python 3 spelling. */
bool mgr_pickle_allows(const mgr_pickle_rule *rules, size_t n_rules, const char *module,
                       const char *name);

/* Zeroed fields take the defaults in brackets. */
typedef struct mgr_pickle_limits {
    const mgr_pickle_rule *allow; /* [mgr_pickle_torch_rules] */
    size_t n_allow;
    uint64_t memory;    /* bytes of nodes, strings, stack and memo [4 GiB] */
    uint64_t max_nodes; /* [2^26] */
    uint64_t base;      /* added to every byte offset in messages and nodes [0] */
} mgr_pickle_limits;

typedef struct mgr_pickle {
    const mgr_node *root;
    size_t used;     /* bytes up to and with STOP; what follows is ignored, as Python does */
    size_t n_nodes;  /* a bound for walks: a tree without sharing has no more nodes than this */
    uint64_t memory; /* bytes the arena holds */
    int protocol;
    mgr_arena arena; /* owns every node and string; the input is not needed any more */
} mgr_pickle;

/* Run the opcodes in `bytes`. `limits` may be NULL. `name` is the file, for messages:
 *   refusing pickle in '<name>' at byte N: global 'os.system' is not on the allow list
 *   damaged pickle in '<name>' at byte N: ...
 * Errors: MGR_ERR_FORMAT (damage, globals that are not allowed), MGR_ERR_UNSUPPORTED (protocols
 * and opcodes no checkpoint uses, limits), MGR_ERR_NOMEM. Local. Free with mgr_pickle_clear; a
 * failure leaves nothing to free. */
int mgr_pickle_read(mgr_pickle *pickle, const char *name, const void *bytes, size_t len,
                    const mgr_pickle_limits *limits, mgr_err *err) MGR_NODISCARD;
void mgr_pickle_clear(mgr_pickle *pickle);

/*
 * Accessors. All take NULL for a node and then say no, so that lookups can be nested.
 */

/* The node as a C string, or NULL: TEXT without a NUL inside. */
const char *mgr_node_text(const mgr_node *node);
/* INT only; a bool is no int here. */
bool mgr_node_int(const mgr_node *node, int64_t *out);

/* The global `module.name`; `__builtin__` and `builtins` are one, as are the other modules that
 * protocol 2 calls by their Python 2 names. */
bool mgr_node_is_global(const mgr_node *node, const char *module, const char *name);
/* An object whose callable is the global `module.name`. */
bool mgr_node_is_call(const mgr_node *node, const char *module, const char *name);
/* What an object is a call of; NULL for other nodes. */
const mgr_node *mgr_node_callable(const mgr_node *node);
/* The same, down to the GLOBAL: the class, where a method of a class is called. */
const mgr_node *mgr_node_class(const mgr_node *node);
/* Argument `idx` of an object; NULL if there are fewer. */
const mgr_node *mgr_node_arg(const mgr_node *node, size_t idx);
size_t mgr_node_n_args(const mgr_node *node);
/* What BUILD gave an object, or NULL. */
const mgr_node *mgr_node_state(const mgr_node *node);
/* Attribute `key` of an object whose state is a dict (argparse.Namespace, dataclasses). */
const mgr_node *mgr_node_attr(const mgr_node *node, const char *key);

/* The elements of a tuple, list, set, torch.Size, or object with APPENDS; false for others. */
bool mgr_node_elements(const mgr_node *node, mgr_node *const **items, size_t *n);
/* A dict, or an object with dict behaviour: OrderedDict, defaultdict, Counter, SETITEMS on it. */
bool mgr_node_is_dict(const mgr_node *node);
size_t mgr_node_n_pairs(const mgr_node *dict);
const mgr_node *mgr_node_key(const mgr_node *dict, size_t idx);
const mgr_node *mgr_node_value(const mgr_node *dict, size_t idx);
/* The value of the last pair whose key is the text `key`, or NULL. Linear. */
const mgr_node *mgr_node_get(const mgr_node *dict, const char *key);

/* What a node is, for messages: "list", "int", "torch.Size", "global os.path". Returns out. */
const char *mgr_node_describe(const mgr_node *node, char *out, size_t size);

#endif
