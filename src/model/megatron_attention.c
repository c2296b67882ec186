#include "model/megatron_attention.h"

#include <stdlib.h>
#include <string.h>

#include "model/megatron.h"

#define WINDOW MGR_ARGS "window_size"
#define SKIPS MGR_ARGS "window_attn_skip_freq"
#define NOPE MGR_ARGS "no_rope_freq"
#define INTERLEAVED MGR_ARGS "rotary_interleaved"

/* Numbers of a list or tuple, True and False among them; false if there is anything else, or more
 * than `most`. */
static bool numbers(const char *text, int64_t *out, size_t most, size_t *n)
{
    *n = 0;
    for (const char *at = text + strspn(text, "[( "); *at && !strchr("])", *at);) {
        char *end = NULL;
        const bool yes = strncmp(at, "True", 4) == 0, no = strncmp(at, "False", 5) == 0;
        if (*n == most)
            return false;
        out[*n] = yes || no ? yes : strtoll(at, &end, 10);
        if (end == at)
            return false;
        ++*n;
        at = yes || no ? at + (yes ? 4 : 5) : end;
        at += strspn(at, ", ");
    }
    return *n > 0;
}

/* So many positions to the left, and none to the right. */
static bool window_of(const mgr_attr *a, uint64_t *out)
{
    int64_t sides[2];
    size_t n;
    if (a->kind != MGR_ATTR_LITERAL || !numbers(a->text, sides, 2, &n) || n != 2 || sides[0] < 0 ||
        sides[0] > INT32_MAX || sides[1] != 0)
        return false;
    *out = (uint64_t)sides[0] + 1; /* and the position itself */
    return true;
}

/* A whole number, or a list of 0 and 1. */
static bool is_pattern(const mgr_attr *a)
{
    int64_t list[MGR_MAX_LAYERS] = {0};
    size_t n;
    if (a->kind == MGR_ATTR_INT)
        return a->i > 0;
    if (a->kind != MGR_ATTR_LITERAL || !numbers(a->text, list, MGR_MAX_LAYERS, &n))
        return false;
    for (size_t i = 0; i < n; i++)
        if (list[i] != 0 && list[i] != 1)
            return false;
    return true;
}

bool mgr_megatron_is_attention(const mgr_attr *a)
{
    uint64_t window;
    if (strcmp(a->key, INTERLEAVED) == 0)
        return a->kind == MGR_ATTR_BOOL;
    if (strcmp(a->key, WINDOW) == 0)
        return window_of(a, &window);
    return strcmp(a->key, NOPE) == 0 && is_pattern(a);
}

static const mgr_attr *find(const mgr_catalogue *cat, uint32_t file, const char *key)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, file, key);
    return a && a->kind != MGR_ATTR_NULL ? a : NULL;
}

/* Does a pattern name `layer`? A number names each so-manieth. */
static bool names(const mgr_attr *a, const int64_t *list, uint64_t layer)
{
    return a->kind == MGR_ATTR_INT ? (layer + 1) % (uint64_t)a->i == 0 : list[layer] == 1;
}

/* Set in the layers that the pattern `a` names, or, with `others`, in those that it does not. */
static int set_layers(const mgr_catalogue *cat, const mgr_attr *a, mgr_model *m,
                      void (*set)(mgr_model *, uint64_t), bool others, mgr_err *err)
{
    int64_t list[MGR_MAX_LAYERS] = {0};
    size_t n = 0;
    const bool fits =
        is_pattern(a) && m->layers <= MGR_MAX_LAYERS &&
        (a->kind == MGR_ATTR_INT || (numbers(a->text, list, MGR_MAX_LAYERS, &n) && n == m->layers));
    if (!fits)
        return mgr_fail(err, MGR_ERR_FORMAT, "%s of '%s' says nothing of %llu layers", a->key,
                        cat->files[a->file].path, (unsigned long long)m->layers);
    for (uint64_t l = 0; l < m->layers; l++)
        if (names(a, list, l) != others)
            set(m, l);
    return MGR_OK;
}

/* A number takes the window from each so-manieth layer, a list gives it. */
static int windows(const mgr_catalogue *cat, uint32_t file, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const skips = find(cat, file, SKIPS);
    for (uint64_t l = 0; !skips && l < m->layers; l++)
        mgr_model_set_window(m, l);
    if (skips)
        MGR_TRY(set_layers(cat, skips, m, mgr_model_set_window, skips->kind == MGR_ATTR_INT, err));
    if (mgr_model_window_layers(m) == 0)
        m->window = 0;
    return MGR_OK;
}

int mgr_megatron_attention_read(const mgr_catalogue *cat, uint32_t file, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const turned = find(cat, file, INTERLEAVED),
                          *const nope = find(cat, file, NOPE),
                          *const window = find(cat, file, WINDOW);
    const bool rope = m->positions == MGR_POSITIONS_ROPE;
    m->rope_interleaved = rope && turned && turned->kind == MGR_ATTR_BOOL && turned->i;
    if (rope && nope && mgr_megatron_is_attention(nope))
        MGR_TRY(set_layers(cat, nope, m, mgr_model_set_nope, false, err));
    return window && window_of(window, &m->window) ? windows(cat, file, m, err) : MGR_OK;
}
