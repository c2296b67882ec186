#include "model/moe_layers.h"

#include <ctype.h>
#include <string.h>

/* A list while it is parsed; `bits` are bytes of 0 and 1. */
typedef struct list {
    uint8_t bits[MGR_MAX_LAYERS];
    size_t n;
} list;

typedef struct parser {
    const char *at;
    int depth;
    bool bad;
} parser;

static bool take(parser *p, char c)
{
    while (*p->at == ' ')
        p->at++;
    if (*p->at != c)
        return false;
    p->at++;
    return true;
}

static size_t number(parser *p)
{
    size_t n = 0;
    while (*p->at == ' ')
        p->at++;
    p->bad = p->bad || !isdigit((unsigned char)*p->at);
    for (; isdigit((unsigned char)*p->at) && n <= MGR_MAX_LAYERS; p->at++)
        n = n * 10 + (size_t)(*p->at - '0');
    p->bad = p->bad || n > MGR_MAX_LAYERS;
    return p->bad ? 0 : n;
}

static void append(parser *p, list *to, const uint8_t *bits, size_t n)
{
    if (n > MGR_MAX_LAYERS - to->n) {
        p->bad = true;
        return;
    }
    memcpy(to->bits + to->n, bits, n);
    to->n += n;
}

/* Everything in the list from `first` on, `times` times. */
static void repeat(parser *p, list *to, size_t first, size_t times)
{
    const size_t n = to->n - first;
    if (times == 0)
        to->n = first;
    for (size_t k = 1; k < times && !p->bad && n > 0; k++)
        append(p, to, to->bits + first, n);
}

static void sum(parser *p, list *to);

/* "[0, 1]" or "(sum)", then any number of "* n". */
static void term(parser *p, list *to)
{
    const size_t first = to->n;
    if (take(p, '[')) {
        do {
            const size_t bit = number(p);
            p->bad = p->bad || bit > 1;
            append(p, to, &(uint8_t){(uint8_t)bit}, 1);
        } while (!p->bad && take(p, ','));
        p->bad = p->bad || !take(p, ']');
    } else if (take(p, '(') && p->depth++ < 16) {
        sum(p, to);
        p->bad = p->bad || !take(p, ')');
        p->depth--;
    } else {
        p->bad = true;
    }
    while (!p->bad && take(p, '*'))
        repeat(p, to, first, number(p));
}

static void sum(parser *p, list *to)
{
    do
        term(p, to);
    while (!p->bad && take(p, '+'));
}

/* The words: of layers 0, 1, 2, ... the odd ones, as Switch Transformers and T5 have it, those of
 * the second half, as V-MoE, or none. */
static bool is_word(const char *text, uint64_t layers, list *out)
{
    const bool second = strcmp(text, "every-second") == 0, last = strcmp(text, "last-half") == 0;
    if (!second && !last && strcmp(text, "none") != 0)
        return false;
    for (; out->n < layers && out->n < MGR_MAX_LAYERS; out->n++)
        out->bits[out->n] = (second && out->n % 2 == 1) || (last && out->n >= layers - layers / 2);
    return true;
}

static bool parse(const char *text, uint64_t layers, list *out)
{
    parser p = {.at = text};
    if (is_word(text, layers, out))
        return out->n == layers;
    const size_t every = number(&p);
    if (!p.bad && *p.at == '\0' && every > 0) {
        for (; out->n < layers && out->n < MGR_MAX_LAYERS; out->n++)
            out->bits[out->n] = out->n % every == 0;
        return out->n == layers;
    }
    p = (parser){.at = text};
    sum(&p, out);
    while (*p.at == ' ')
        p.at++;
    return !p.bad && *p.at == '\0' && out->n == layers;
}

int mgr_moe_layers(const char *text, mgr_stack stack, mgr_model *model)
{
    list found = {.n = 0};
    const uint64_t first = mgr_model_stack_first(model, stack);
    if (!parse(text, mgr_model_stack_layers(model, stack), &found))
        return 1;
    for (size_t l = 0; l < found.n; l++)
        if (found.bits[l])
            model->dense_layers[(first + l) / 8] &= (uint8_t) ~(1u << (first + l) % 8);
        else
            mgr_model_set_dense(model, first + l);
    return 0;
}
