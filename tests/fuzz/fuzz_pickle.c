/* Any bytes as a pickle; what comes out is walked with every accessor. The graph may hold itself,
 * so the walk follows each node's first visit only, with a stack of its own. */
#include <stdlib.h>
#include <string.h>

#include "fmt/pickle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_WALK = 20000 };

static size_t push(const mgr_node **stack, size_t depth, const mgr_node *node)
{
    if (node && depth < MAX_WALK)
        stack[depth++] = node;
    return depth;
}

static void look(const mgr_node *node)
{
    char text[64];
    int64_t value;
    const char *const s = mgr_node_text(node);
    if (s && strlen(s) != node->u.s.len)
        abort();
    if (mgr_node_int(node, &value) && node->kind != MGR_NODE_INT)
        abort();
    if (!mgr_node_describe(node, text, sizeof text)[0])
        abort();
    const mgr_node *const callable = mgr_node_callable(node);
    if (callable && callable->kind != MGR_NODE_GLOBAL &&
        !mgr_node_is_call(callable, "__builtin__", "getattr"))
        abort();
    if (callable && !mgr_node_class(node))
        abort();
    (void)mgr_node_attr(node, "a");
    (void)mgr_node_get(node, "a");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const mgr_node *stack[MAX_WALK];
    const mgr_pickle_limits limits = {.memory = UINT64_C(256) << 20};
    mgr_err err = MGR_ERR_INIT;
    mgr_pickle pickle;
    if (mgr_pickle_read(&pickle, "fuzz.pkl", data, size, &limits, &err) != MGR_OK)
        return 0;
    size_t depth = push(stack, 0, pickle.root);
    for (size_t steps = 0; depth > 0 && steps < MAX_WALK; steps++) {
        const mgr_node *const node = stack[--depth];
        mgr_node *const *items;
        size_t n;
        look(node);
        if (mgr_node_elements(node, &items, &n))
            for (size_t i = 0; i < n; i++)
                depth = push(stack, depth, items[i]);
        for (size_t i = 0; i < mgr_node_n_pairs(node); i++) {
            depth = push(stack, depth, mgr_node_key(node, i));
            depth = push(stack, depth, mgr_node_value(node, i));
        }
        for (size_t i = 0; i < mgr_node_n_args(node); i++)
            depth = push(stack, depth, mgr_node_arg(node, i));
        depth = push(stack, depth, mgr_node_state(node));
        if (node->kind == MGR_NODE_PERSID)
            depth = push(stack, depth, node->u.persid);
    }
    mgr_pickle_clear(&pickle);
    return 0;
}
