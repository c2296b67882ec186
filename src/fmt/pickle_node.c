#include <stdio.h>
#include <string.h>

#include "fmt/pickle.h"

/* Looking at what a pickle held: the allow list, and accessors that never trust a kind. */

const mgr_pickle_rule mgr_pickle_torch_rules[] = {
    {"collections", "OrderedDict"},
    {"collections", "defaultdict"},
    {"collections", "Counter"},
    {"collections", "deque"},
    {"argparse", "Namespace"},
    {"types", "SimpleNamespace"},
    {"torch", "Size"},
    {"torch", "Tensor"},
    {"torch", "device"},
    {"torch", "*Storage"},
    {"torch", "bfloat16"},
    {"torch", "float*"},
    {"torch", "half"},
    {"torch", "double"},
    {"torch", "int*"},
    {"torch", "uint*"},
    {"torch", "short"},
    {"torch", "long"},
    {"torch", "bool"},
    {"torch", "complex*"},
    {"torch", "qint*"},
    {"torch", "quint*"},
    {"torch", "bits*"},
    {"torch", "per_tensor_*"},
    {"torch", "per_channel_*"},
    {"torch", "strided"},
    {"torch", "*_format"},
    {"torch", "Generator"},
    {"torch.cuda", "*Storage"},
    {"torch.storage", "*Storage"},
    {"torch._utils", "_rebuild_*"},
    {"torch._tensor", "_rebuild_from_type_v2"},
    {"torch.serialization", "_get_layout"},
    {"torch.nn.parameter", "*"},
    {"torch.nn.init", "*"},
    {"torch.nn.functional", "*"},
    {"torch.nn.modules.*", "*"},
    {"torch._C._nn", "*"},
    {"torch._C", "Generator"},
    {"torch._C", "_VariableFunctions*"}, /* getattr of it is torch.tanh and others */
    {"torch.torch_version", "TorchVersion"},
    {"torch.distributed.checkpoint.*", "*"},
    {"torch.distributed._shard.*", "*"},
    {"torch.distributed.tensor", "*"}, /* DTensor; refused later, by the tensor's name */
    {"torch.distributed.tensor.*", "*"},
    {"torch.distributed.device_mesh", "*"},
    {"megatron.*", "*"},
    {"transformer_engine.*", "*"},
    {"transformer_engine_torch", "*"},
    {"deepspeed.*", "*"},
    {"signal", "*"},
    {"pathlib", "*Path"},
    {"pathlib._local", "*Path"},
    {"numpy", "ndarray"},
    {"numpy", "dtype"},
    {"numpy.dtypes", "*"},
    {"numpy.core.multiarray", "_reconstruct"},
    {"numpy.core.multiarray", "scalar"},
    {"numpy._core.multiarray", "_reconstruct"},
    {"numpy._core.multiarray", "scalar"},
    {"numpy.core.numeric", "_frombuffer"},
    {"numpy._core.numeric", "_frombuffer"},
    {"numpy.random.*", "*"},
    {"_codecs", "encode"},
    {"_io", "BytesIO"},
    {"io", "BytesIO"},
    {"_operator", "or_"}, /* combined enum flags of Python 3.11.2 */
    {"__builtin__", "set"},
    {"__builtin__", "frozenset"},
    {"__builtin__", "bytearray"},
    {"__builtin__", "bytes"},
    {"__builtin__", "complex"},
    {"__builtin__", "slice"},
    {"__builtin__", "xrange"},
    {"__builtin__", "range"},
    {"__builtin__", "object"},
    {"__builtin__", "int"},
    {"__builtin__", "float"},
    {"__builtin__", "bool"},
    {"__builtin__", "str"},
    {"__builtin__", "dict"},
    {"__builtin__", "list"},
    {"__builtin__", "tuple"},
    {"__builtin__", "getattr"}, /* (class, 'NAME') only, see make_call */
    {"copy_reg", "_reconstructor"},
};
const size_t mgr_pickle_n_torch_rules =
    sizeof mgr_pickle_torch_rules / sizeof mgr_pickle_torch_rules[0];

/* Protocol 2 writes some modules by their Python 2 names; others have moved between versions. */
static const char *canonical(const char *module)
{
    static const char *const names[][2] = {
        {"builtins", "__builtin__"},
        {"copyreg", "copy_reg"},
        {"numpy._core.multiarray", "numpy.core.multiarray"},
        {"pathlib._local", "pathlib"},
        {"io", "_io"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(module, names[i][0]) == 0)
            return names[i][1];
    return module;
}

static bool matches(const char *text, const char *pattern)
{
    const size_t len = strlen(text), n = strlen(pattern);
    if (pattern[0] == '*')
        return len >= n - 1 && strcmp(text + len - (n - 1), pattern + 1) == 0;
    if (pattern[n - 1] == '*')
        return strncmp(text, pattern, n - 1) == 0;
    return strcmp(text, pattern) == 0;
}

bool mgr_pickle_allows(const mgr_pickle_rule *rules, size_t n_rules, const char *module,
                       const char *name)
{
    const char *const same = canonical(module);
    for (size_t i = 0; i < n_rules; i++) {
        const mgr_pickle_rule *const rule = &rules[i];
        if ((matches(module, rule->module) || matches(same, rule->module)) &&
            matches(name, rule->name))
            return true;
    }
    return false;
}

const char *mgr_node_text(const mgr_node *node)
{
    if (!node || node->kind != MGR_NODE_TEXT || memchr(node->u.s.bytes, 0, node->u.s.len))
        return NULL;
    return node->u.s.bytes;
}

bool mgr_node_int(const mgr_node *node, int64_t *out)
{
    if (!node || node->kind != MGR_NODE_INT)
        return false;
    *out = node->u.i;
    return true;
}

bool mgr_node_is_global(const mgr_node *node, const char *module, const char *name)
{
    return node && node->kind == MGR_NODE_GLOBAL && strcmp(node->u.g.name, name) == 0 &&
           strcmp(canonical(node->u.g.module), canonical(module)) == 0;
}

const mgr_node *mgr_node_callable(const mgr_node *node)
{
    return node && node->kind == MGR_NODE_OBJECT ? node->u.c.call->callable : NULL;
}

bool mgr_node_is_call(const mgr_node *node, const char *module, const char *name)
{
    return mgr_node_is_global(mgr_node_callable(node), module, name);
}

size_t mgr_node_n_args(const mgr_node *node)
{
    return node && node->kind == MGR_NODE_OBJECT ? node->u.c.call->args->u.c.n : 0;
}

const mgr_node *mgr_node_arg(const mgr_node *node, size_t idx)
{
    return idx < mgr_node_n_args(node) ? node->u.c.call->args->u.c.items[idx] : NULL;
}

const mgr_node *mgr_node_state(const mgr_node *node)
{
    return node && node->kind == MGR_NODE_OBJECT ? node->u.c.call->state : NULL;
}

const mgr_node *mgr_node_attr(const mgr_node *node, const char *key)
{
    return mgr_node_get(mgr_node_state(node), key);
}

bool mgr_node_elements(const mgr_node *node, mgr_node *const **items, size_t *n)
{
    if (mgr_node_is_call(node, "torch", "Size") && mgr_node_n_args(node) == 1)
        node = mgr_node_arg(node, 0);
    if (!node)
        return false;
    switch ((mgr_node_kind)node->kind) {
    case MGR_NODE_OBJECT:
        if (node->holds != MGR_HOLDS_ELEMENTS)
            return false;
        break;
    case MGR_NODE_TUPLE:
    case MGR_NODE_LIST:
    case MGR_NODE_SET:
    case MGR_NODE_FROZENSET:
        break;
    default:
        return false;
    }
    *items = node->u.c.items;
    *n = node->u.c.n;
    return true;
}

bool mgr_node_is_dict(const mgr_node *node)
{
    if (!node)
        return false;
    if (node->kind == MGR_NODE_DICT)
        return true;
    return node->kind == MGR_NODE_OBJECT && (node->holds == MGR_HOLDS_PAIRS ||
                                             mgr_node_is_call(node, "collections", "OrderedDict") ||
                                             mgr_node_is_call(node, "collections", "defaultdict") ||
                                             mgr_node_is_call(node, "collections", "Counter"));
}

size_t mgr_node_n_pairs(const mgr_node *dict)
{
    return mgr_node_is_dict(dict) ? dict->u.c.n / 2 : 0;
}

const mgr_node *mgr_node_key(const mgr_node *dict, size_t idx)
{
    return idx < mgr_node_n_pairs(dict) ? dict->u.c.items[2 * idx] : NULL;
}

const mgr_node *mgr_node_value(const mgr_node *dict, size_t idx)
{
    return idx < mgr_node_n_pairs(dict) ? dict->u.c.items[2 * idx + 1] : NULL;
}

const mgr_node *mgr_node_get(const mgr_node *dict, const char *key)
{
    for (size_t i = mgr_node_n_pairs(dict); i-- > 0;) {
        const char *const text = mgr_node_text(dict->u.c.items[2 * i]);
        if (text && strcmp(text, key) == 0)
            return dict->u.c.items[2 * i + 1];
    }
    return NULL;
}

const mgr_node *mgr_node_class(const mgr_node *node)
{
    const mgr_node *callable = mgr_node_callable(node);
    if (mgr_node_is_call(callable, "__builtin__", "getattr"))
        callable = mgr_node_arg(callable, 0);
    return callable && callable->kind == MGR_NODE_GLOBAL ? callable : NULL;
}

const char *mgr_node_describe(const mgr_node *node, char *out, size_t size)
{
    static const char *const names[MGR_NODE_KINDS] = {
        "None", "bool", "int",       "int",  "float",  "str",    "bytes",        "tuple",
        "list", "set",  "frozenset", "dict", "global", "object", "persistent id"};
    const mgr_node *const callable = mgr_node_class(node);
    if (!node)
        snprintf(out, size, "nothing");
    else if (callable)
        snprintf(out, size, "%.100s.%.100s", callable->u.g.module, callable->u.g.name);
    else if (node->kind == MGR_NODE_GLOBAL)
        snprintf(out, size, "global %.100s.%.100s", node->u.g.module, node->u.g.name);
    else
        snprintf(out, size, "%s", names[node->kind]);
    return out;
}
