#include "fmt/literal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/pickle_write.h"

#define MAX_DEPTH 8
#define MAX_TEXT (UINT64_C(64) << 10)

/* ---- from nodes to text ---- */

typedef struct speller {
    mgr_buf *out;
    size_t start;
    bool plain; /* nothing came that has no spelling */
    mgr_err *err;
} speller;

const char *mgr_literal_real(double value, char *out, size_t size)
{
    char digits[MGR_REAL_BYTES];
    snprintf(out, size, "%s", mgr_shortest_real(value, digits));
    if (strspn(out, "-0123456789") == strlen(out) && strlen(out) + 3 <= size)
        memcpy(out + strlen(out), ".0", sizeof ".0");
    return out;
}

/* Quotes, backslashes and control bytes are escaped, the rest is UTF-8 as it was. */
static int spell_text(speller *s, const char *text)
{
    MGR_TRY(mgr_buf_text(s->out, "'", s->err));
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == 0x7f || c == '\'' || c == '\\')
            MGR_TRY(mgr_buf_fmt(s->out, s->err, "\\x%02x", c));
        else
            MGR_TRY(mgr_buf_add(s->out, text, 1, s->err));
    }
    return mgr_buf_text(s->out, "'", s->err);
}

static int spell_scalar(speller *s, const mgr_node *node)
{
    char number[40];
    switch (node->kind) {
    case MGR_NODE_NONE:
        return mgr_buf_text(s->out, "None", s->err);
    case MGR_NODE_BOOL:
        return mgr_buf_text(s->out, node->u.i ? "True" : "False", s->err);
    case MGR_NODE_INT:
        return mgr_buf_fmt(s->out, s->err, "%" PRId64, node->u.i);
    case MGR_NODE_REAL:
        return mgr_buf_text(s->out, mgr_literal_real(node->u.r, number, sizeof number), s->err);
    case MGR_NODE_TEXT:
        if (mgr_node_text(node))
            return spell_text(s, mgr_node_text(node));
        break;
    case MGR_NODE_GLOBAL: /* dtypes; classes and functions begin with other letters or modules */
        if (strcmp(node->u.g.module, "torch") == 0 && node->u.g.name[0] >= 'a')
            return mgr_buf_fmt(s->out, s->err, "torch.%s", node->u.g.name);
        break;
    default:
        break;
    }
    s->plain = false;
    return MGR_OK;
}

static int spell(speller *s, const mgr_node *node, unsigned depth);

static int spell_items(speller *s, const mgr_node *node, const char *marks, unsigned depth)
{
    const bool pairs = node->kind == MGR_NODE_DICT;
    const size_t n = node->u.c.n;
    MGR_TRY(mgr_buf_add(s->out, marks, 1, s->err));
    for (size_t i = 0; i < n && s->plain; i++) {
        if (i > 0)
            MGR_TRY(mgr_buf_text(s->out, pairs && i % 2 ? ": " : ", ", s->err));
        MGR_TRY(spell(s, node->u.c.items[i], depth + 1));
    }
    if (n == 1 && node->kind == MGR_NODE_TUPLE)
        MGR_TRY(mgr_buf_text(s->out, ",", s->err));
    return mgr_buf_add(s->out, marks + 1, 1, s->err);
}

/* A pickle can hold itself: depth and length are bounded. */
static int spell(speller *s, const mgr_node *node, unsigned depth)
{
    s->plain = s->plain && depth < MAX_DEPTH && s->out->len - s->start < MAX_TEXT;
    if (!s->plain)
        return MGR_OK;
    if (node->kind == MGR_NODE_LIST)
        return spell_items(s, node, "[]", depth);
    if (node->kind == MGR_NODE_TUPLE)
        return spell_items(s, node, "()", depth);
    if (node->kind == MGR_NODE_DICT)
        return spell_items(s, node, "{}", depth);
    return spell_scalar(s, node);
}

int mgr_literal_spell(const mgr_node *node, mgr_buf *out, mgr_err *err)
{
    speller s = {.out = out, .start = out->len, .plain = true, .err = err};
    if (node->kind != MGR_NODE_LIST && node->kind != MGR_NODE_TUPLE && node->kind != MGR_NODE_DICT)
        return MGR_OK;
    MGR_TRY(spell(&s, node, 0));
    if (s.plain)
        return MGR_OK;
    out->len = s.start;
    out->data[out->len] = '\0';
    return MGR_OK;
}

/* ---- from text to opcodes ---- */

typedef struct reader {
    const char *at;
    mgr_buf *out;
    mgr_err *err;
} reader;

static int bad(const reader *r)
{
    return mgr_fail(r->err, MGR_ERR_INTERNAL, "'%.40s' is no literal of ours", r->at);
}

static bool take(reader *r, const char *word)
{
    const size_t n = strlen(word);
    if (strncmp(r->at, word, n) != 0)
        return false;
    r->at += n;
    return true;
}

static int read_text(reader *r)
{
    mgr_buf text = {0};
    int rc = mgr_buf_text(&text, "", r->err);
    for (r->at++; rc == MGR_OK && *r->at && *r->at != '\'';) {
        char c = *r->at++;
        if (c == '\\' && r->at[0] == 'x' && r->at[1] && r->at[2]) {
            c = (char)strtoul((const char[]){r->at[1], r->at[2], '\0'}, NULL, 16);
            r->at += 3;
        }
        rc = mgr_buf_add(&text, &c, 1, r->err);
    }
    if (rc == MGR_OK && !take(r, "'"))
        rc = bad(r);
    if (rc == MGR_OK)
        rc = mgr_pickle_text(r->out, text.data, r->err);
    mgr_buf_clear(&text);
    return rc;
}

static int read_number(reader *r)
{
    char *end;
    const size_t n = strcspn(r->at, ",:]})");
    const bool whole = n > 0 && strspn(r->at, "-0123456789") >= n;
    const int64_t i = whole ? strtoll(r->at, &end, 10) : 0;
    const double real = whole ? 0 : strtod(r->at, &end);
    if (n == 0 || end != r->at + n)
        return bad(r);
    r->at = end;
    return whole ? mgr_pickle_int(r->out, i, r->err) : mgr_pickle_real(r->out, real, r->err);
}

static int read_dtype(reader *r)
{
    char name[64];
    const size_t n = strcspn(r->at, ",:]})");
    if (n >= sizeof name)
        return bad(r);
    snprintf(name, sizeof name, "%.*s", (int)n, r->at);
    r->at += n;
    return mgr_pickle_global(r->out, "torch", name, r->err);
}

static int read_value(reader *r, unsigned depth);

static int read_items(reader *r, char last, unsigned depth)
{
    for (r->at++; *r->at && *r->at != last;) {
        MGR_TRY(read_value(r, depth + 1));
        if (take(r, ", ") || take(r, ": ") || take(r, ","))
            continue;
        if (*r->at != last)
            return bad(r);
    }
    return take(r, (const char[]){last, '\0'}) ? MGR_OK : bad(r);
}

static int read_nested(reader *r, unsigned depth)
{
    const char first = *r->at;
    if (depth > MAX_DEPTH)
        return bad(r);
    if (first == '[') {
        MGR_TRY(mgr_pickle_list_open(r->out, r->err));
        MGR_TRY(read_items(r, ']', depth));
        return mgr_pickle_list_close(r->out, r->err);
    }
    if (first == '(') {
        MGR_TRY(mgr_pickle_tuple_open(r->out, r->err));
        MGR_TRY(read_items(r, ')', depth));
        return mgr_pickle_tuple_close(r->out, r->err);
    }
    MGR_TRY(mgr_pickle_dict_open(r->out, r->err));
    MGR_TRY(read_items(r, '}', depth));
    return mgr_pickle_dict_close(r->out, r->err);
}

static int read_value(reader *r, unsigned depth)
{
    if (strchr("[({", *r->at) && *r->at)
        return read_nested(r, depth);
    if (*r->at == '\'')
        return read_text(r);
    if (take(r, "None"))
        return mgr_pickle_none(r->out, r->err);
    if (take(r, "True"))
        return mgr_pickle_bool(r->out, 1, r->err);
    if (take(r, "False"))
        return mgr_pickle_bool(r->out, 0, r->err);
    if (take(r, "torch."))
        return read_dtype(r);
    return read_number(r);
}

int mgr_literal_pickle(const char *text, mgr_buf *out, mgr_err *err)
{
    reader r = {text, out, err};
    MGR_TRY(read_value(&r, 0));
    return *r.at ? bad(&r) : MGR_OK;
}
