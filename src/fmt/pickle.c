#include "fmt/pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

/*
 * The machine has a stack of nodes, a stack of marks and a memo, as Python's has. An opcode is one
 * byte and its operands; strings are copied into the arena, lengths are checked against what is
 * left of the input before anything is allocated. src/fmt/README.md lists the opcodes.
 */
#define DEFAULT_MEMORY (UINT64_C(4) << 30)
#define DEFAULT_NODES (UINT64_C(1) << 26)
#define MAX_GLOBAL 1024 /* bytes of a module or a name */
#define MAX_LONG 65536  /* bytes of one integer */
#define NAME_SHOWN 200

typedef struct vm {
    const unsigned char *bytes;
    size_t len, pos;
    size_t op_at; /* of the opcode being run */
    uint64_t n_ops;
    const char *name;
    mgr_pickle_limits limits;
    mgr_pickle *out;
    mgr_node **stack;
    size_t depth, cap_stack;
    size_t *marks; /* heights of the stack */
    size_t n_marks, cap_marks;
    mgr_node **memo;
    size_t cap_memo;
    uint64_t n_memo;
    mgr_node *empty; /* the one empty tuple */
    bool done;
    mgr_err *err;
} vm;

static int damage(vm *m, const char *what)
{
    mgr_fail(m->err, MGR_ERR_FORMAT, "damaged pickle in '%s' at byte %" PRIu64 ": %s", m->name,
             m->limits.base + m->op_at, what);
    return MGR_ERR_FORMAT;
}

static int refuse(vm *m, mgr_code code, const char *what)
{
    mgr_fail(m->err, code, "refusing pickle in '%s' at byte %" PRIu64 ": %s", m->name,
             m->limits.base + m->op_at, what);
    return (int)code;
}

static int charge(vm *m, uint64_t bytes)
{
    m->out->memory += bytes;
    if (m->out->memory > m->limits.memory)
        return refuse(m, MGR_ERR_UNSUPPORTED, "it needs more memory than the limit allows");
    return MGR_OK;
}

static int arena(vm *m, void *out, size_t bytes)
{
    MGR_TRY(charge(m, bytes + 15));
    return mgr_arena_alloc(&m->out->arena, out, bytes, m->err);
}

/* `n` operand bytes. */
static int take(vm *m, uint64_t n, const unsigned char **out)
{
    if (n > m->len - m->pos)
        return damage(m, "operand passes the end");
    *out = m->bytes + m->pos;
    m->pos += (size_t)n;
    return MGR_OK;
}

/* A little-endian operand of 1, 2, 4 or 8 bytes. */
static int take_uint(vm *m, unsigned size, uint64_t *out)
{
    const unsigned char *p;
    MGR_TRY(take(m, size, &p));
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)p[i] << (8 * i);
    *out = value;
    return MGR_OK;
}

/* An operand that ends in a newline, which is not part of *len. */
static int take_line(vm *m, size_t limit, const char **out, size_t *len)
{
    const unsigned char *const start = m->bytes + m->pos;
    const size_t left = m->len - m->pos < limit + 1 ? m->len - m->pos : limit + 1;
    const unsigned char *const end = left ? memchr(start, '\n', left) : NULL;
    if (!end)
        return damage(m, "line without an end");
    *out = (const char *)start;
    *len = (size_t)(end - start);
    m->pos += *len + 1;
    return MGR_OK;
}

static int new_node(vm *m, mgr_node_kind kind, mgr_node **out)
{
    mgr_node *node;
    if (m->out->n_nodes >= m->limits.max_nodes)
        return refuse(m, MGR_ERR_UNSUPPORTED, "it holds more objects than the limit allows");
    MGR_TRY(arena(m, &node, sizeof *node));
    m->out->n_nodes++;
    node->kind = (uint8_t)kind;
    node->at = m->limits.base + m->op_at;
    *out = node;
    return MGR_OK;
}

static int push(vm *m, mgr_node *node)
{
    const size_t before = m->cap_stack;
    MGR_TRY(mgr_grow(&m->stack, &m->cap_stack, m->depth + 1, sizeof *m->stack, m->err));
    MGR_TRY(charge(m, (m->cap_stack - before) * sizeof *m->stack));
    m->stack[m->depth++] = node;
    return MGR_OK;
}

/* Nothing below the last mark can be taken. */
static size_t fence(const vm *m)
{
    return m->n_marks ? m->marks[m->n_marks - 1] : 0;
}

static int pop(vm *m, mgr_node **out)
{
    if (m->depth <= fence(m))
        return damage(m, "stack underflow");
    *out = m->stack[--m->depth];
    return MGR_OK;
}

static int top(vm *m, mgr_node **out)
{
    if (m->depth <= fence(m))
        return damage(m, "stack underflow");
    *out = m->stack[m->depth - 1];
    return MGR_OK;
}

/* Take all items above the last mark, and the mark. They stay valid until the next push. */
static int pop_mark(vm *m, mgr_node *const **items, size_t *n)
{
    if (m->n_marks == 0)
        return damage(m, "no mark on the stack");
    const size_t first = m->marks[--m->n_marks];
    *n = m->depth - first;
    *items = m->stack + first;
    m->depth = first;
    return MGR_OK;
}

/* The room of a growing container follows from its length: 0, or a power of two from 4. */
static size_t room(size_t n)
{
    size_t cap = n ? 4 : 0;
    while (cap < n)
        cap *= 2;
    return cap;
}

static int append_items(vm *m, mgr_node *node, mgr_node *const *items, size_t n)
{
    const size_t have = node->u.c.n;
    if (n == 0)
        return MGR_OK;
    if (have + n > room(have)) {
        mgr_node **bigger;
        MGR_TRY(arena(m, &bigger, room(have + n) * sizeof *bigger));
        if (have)
            memcpy(bigger, node->u.c.items, have * sizeof *bigger);
        node->u.c.items = bigger;
    }
    memcpy(node->u.c.items + have, items, n * sizeof *items);
    node->u.c.n = have + n;
    return MGR_OK;
}

static int make_sequence(vm *m, mgr_node_kind kind, mgr_node *const *items, size_t n)
{
    mgr_node *node;
    MGR_TRY(new_node(m, kind, &node));
    MGR_TRY(append_items(m, node, items, n));
    return push(m, node);
}

/* The bytes of a TEXT, BYTES or BIGINT node, copied and NUL-terminated. */
static int make_bytes(vm *m, mgr_node_kind kind, const void *bytes, size_t len, mgr_node **out)
{
    char *copy;
    mgr_node *node;
    MGR_TRY(new_node(m, kind, &node));
    MGR_TRY(arena(m, &copy, len + 1));
    if (len)
        memcpy(copy, bytes, len);
    node->u.s.bytes = copy;
    node->u.s.len = len;
    *out = node;
    return MGR_OK;
}

/* UTF-8 as Python's "surrogatepass" reads it: shortest forms up to U+10FFFF, surrogates allowed. */
static bool is_utf8(const unsigned char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        const unsigned char c = s[i++];
        unsigned more = 0;
        uint32_t code = c, least = 0;
        if (c >= 0xf0 && c < 0xf8) {
            more = 3;
            code = c & 0x07u;
            least = 0x10000;
        } else if (c >= 0xe0 && c < 0xf0) {
            more = 2;
            code = c & 0x0fu;
            least = 0x800;
        } else if (c >= 0xc0 && c < 0xe0) {
            more = 1;
            code = c & 0x1fu;
            least = 0x80;
        } else if (c >= 0x80) {
            return false;
        }
        if (more > len - i)
            return false;
        for (; more > 0; more--, i++) {
            if ((s[i] & 0xc0) != 0x80)
                return false;
            code = code << 6 | (s[i] & 0x3fu);
        }
        if (code < least || code > 0x10ffff)
            return false;
    }
    return true;
}

static bool is_identifier(const char *s, size_t len)
{
    if (len == 0 || len > MAX_GLOBAL)
        return false;
    for (size_t i = 0; i < len; i++) {
        const char c = s[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '.'))
            return false;
    }
    return true;
}

static int make_global(vm *m, const char *module, size_t module_len, const char *name,
                       size_t name_len)
{
    char *texts[2];
    mgr_node *node;
    if (!is_identifier(module, module_len) || !is_identifier(name, name_len))
        return damage(m, "a global is not named by identifiers");
    MGR_TRY(new_node(m, MGR_NODE_GLOBAL, &node));
    MGR_TRY(arena(m, &texts[0], module_len + 1));
    MGR_TRY(arena(m, &texts[1], name_len + 1));
    memcpy(texts[0], module, module_len);
    memcpy(texts[1], name, name_len);
    node->u.g.module = texts[0];
    node->u.g.name = texts[1];
    if (!mgr_pickle_allows(m->limits.allow, m->limits.n_allow, texts[0], texts[1])) {
        const int rc = mgr_fail(m->err, MGR_ERR_FORMAT,
                                "refusing pickle in '%s' at byte %" PRIu64
                                ": global '%.200s.%.200s' is not on the allow list",
                                m->name, m->limits.base + m->op_at, texts[0], texts[1]);
        mgr_hint(m->err, "if the file is trusted, load and save it again without that object");
        return rc;
    }
    return push(m, node);
}

/* ---- opcodes: each handler gets the opcode, with pos behind it ---- */

static int op_none(vm *m, int op)
{
    mgr_node *node;
    (void)op;
    MGR_TRY(new_node(m, MGR_NODE_NONE, &node));
    return push(m, node);
}

static int push_bool(vm *m, bool value)
{
    mgr_node *node;
    MGR_TRY(new_node(m, MGR_NODE_BOOL, &node));
    node->u.i = value;
    return push(m, node);
}

static int op_bool(vm *m, int op)
{
    return push_bool(m, op == 0x88);
}

static int push_int(vm *m, int64_t value)
{
    mgr_node *node;
    MGR_TRY(new_node(m, MGR_NODE_INT, &node));
    node->u.i = value;
    return push(m, node);
}

/* BININT i32, BININT1 u8, BININT2 u16 */
static int op_binint(vm *m, int op)
{
    uint64_t value;
    MGR_TRY(take_uint(m, op == 'J' ? 4 : op == 'M' ? 2 : 1, &value));
    return push_int(m, op == 'J' ? (int64_t)(int32_t)(uint32_t)value : (int64_t)value);
}

/* LONG1 u8 n, LONG4 i32 n: two's complement, little-endian; no bytes are zero */
static int op_long(vm *m, int op)
{
    uint64_t n;
    const unsigned char *p;
    MGR_TRY(take_uint(m, op == 0x8a ? 1 : 4, &n));
    if (n > INT32_MAX)
        return damage(m, "integer of negative length");
    if (n > MAX_LONG)
        return refuse(m, MGR_ERR_UNSUPPORTED, "integer of more than 64 KiB");
    MGR_TRY(take(m, n, &p));
    const unsigned char sign = n && (p[n - 1] & 0x80) ? 0xff : 0;
    while (n > 8 && p[n - 1] == sign && ((p[n - 2] ^ sign) & 0x80) == 0)
        n--;
    if (n > 8) {
        mgr_node *node;
        MGR_TRY(make_bytes(m, MGR_NODE_BIGINT, p, (size_t)n, &node));
        return push(m, node);
    }
    uint64_t value = sign ? UINT64_MAX : 0;
    for (uint64_t i = 0; i < n; i++) {
        value &= ~(UINT64_C(0xff) << (8 * i));
        value |= (uint64_t)p[i] << (8 * i);
    }
    return push_int(m, (int64_t)value);
}

/* INT "12\n", "00\n" and "01\n" are bools; LONG "12L\n" */
static int op_int_text(vm *m, int op)
{
    const char *line;
    size_t len;
    MGR_TRY(take_line(m, MAX_LONG, &line, &len));
    if (op == 'I' && len == 2 && line[0] == '0' && (line[1] == '0' || line[1] == '1'))
        return push_bool(m, line[1] == '1');
    if (op == 'L' && len && line[len - 1] == 'L')
        len--;
    const bool negative = len && line[0] == '-';
    size_t i = negative ? 1 : 0;
    if (i == len)
        return damage(m, "integer without digits");
    uint64_t value = 0;
    for (; i < len; i++) {
        if (line[i] < '0' || line[i] > '9')
            return damage(m, "integer with other bytes than digits");
        if (mgr_mul_overflow(value, 10, &value) ||
            mgr_add_overflow(value, (uint64_t)(line[i] - '0'), &value) || value > INT64_MAX)
            return refuse(m, MGR_ERR_UNSUPPORTED, "integer text beyond 64 bits");
    }
    return push_int(m, negative ? -(int64_t)value : (int64_t)value);
}

static int push_real(vm *m, double value)
{
    mgr_node *node;
    MGR_TRY(new_node(m, MGR_NODE_REAL, &node));
    node->u.r = value;
    return push(m, node);
}

/* BINFLOAT: big-endian, alone among the opcodes */
static int op_binfloat(vm *m, int op)
{
    const unsigned char *p;
    (void)op;
    MGR_TRY(take(m, 8, &p));
    uint64_t bits = 0;
    for (unsigned i = 0; i < 8; i++)
        bits = bits << 8 | p[i];
    double value;
    memcpy(&value, &bits, sizeof value);
    return push_real(m, value);
}

/* FLOAT "1.5\n" */
static int op_float_text(vm *m, int op)
{
    const char *line;
    char copy[64], *end;
    size_t len;
    (void)op;
    MGR_TRY(take_line(m, sizeof copy - 1, &line, &len));
    memcpy(copy, line, len);
    copy[len] = '\0';
    if (len == 0 || strspn(copy, "+-.0123456789eEinfa") != len)
        return damage(m, "no number");
    const double value = strtod(copy, &end);
    if (*end)
        return damage(m, "no number");
    return push_real(m, value);
}

/* BINUNICODE u32, SHORT_BINUNICODE u8, BINUNICODE8 u64; the strings of Python 2, BINSTRING i32 and
 * SHORT_BINSTRING u8, are text if they can be and bytes if not */
static int op_text(vm *m, int op)
{
    const unsigned size = op == 0x8d ? 8 : op == 'X' || op == 'T' ? 4 : 1;
    const unsigned char *p;
    uint64_t len;
    mgr_node *node;
    MGR_TRY(take_uint(m, size, &len));
    MGR_TRY(take(m, len, &p));
    const bool text = is_utf8(p, (size_t)len);
    if (!text && op != 'T' && op != 'U')
        return damage(m, "text is not UTF-8");
    MGR_TRY(make_bytes(m, text ? MGR_NODE_TEXT : MGR_NODE_BYTES, p, (size_t)len, &node));
    return push(m, node);
}

/* BINBYTES u32, SHORT_BINBYTES u8, BINBYTES8 u64, BYTEARRAY8 u64 */
static int op_bytes(vm *m, int op)
{
    const unsigned char *p;
    uint64_t len;
    mgr_node *node;
    MGR_TRY(take_uint(m, op == 'B' ? 4 : op == 'C' ? 1 : 8, &len));
    MGR_TRY(take(m, len, &p));
    MGR_TRY(make_bytes(m, MGR_NODE_BYTES, p, (size_t)len, &node));
    return push(m, node);
}

static int op_mark(vm *m, int op)
{
    const size_t before = m->cap_marks;
    (void)op;
    MGR_TRY(mgr_grow(&m->marks, &m->cap_marks, m->n_marks + 1, sizeof *m->marks, m->err));
    MGR_TRY(charge(m, (m->cap_marks - before) * sizeof *m->marks));
    m->marks[m->n_marks++] = m->depth;
    return MGR_OK;
}

static int op_empty(vm *m, int op)
{
    if (op == ')')
        return push(m, m->empty);
    return make_sequence(m,
                         op == '}'   ? MGR_NODE_DICT
                         : op == ']' ? MGR_NODE_LIST
                                     : MGR_NODE_SET,
                         NULL, 0);
}

/* TUPLE, LIST, FROZENSET: everything above the mark */
static int op_collect(vm *m, int op)
{
    mgr_node *const *items;
    size_t n;
    MGR_TRY(pop_mark(m, &items, &n));
    if (op == 't' && n == 0)
        return push(m, m->empty);
    return make_sequence(m,
                         op == 't'   ? MGR_NODE_TUPLE
                         : op == 'l' ? MGR_NODE_LIST
                                     : MGR_NODE_FROZENSET,
                         items, n);
}

/* TUPLE1, TUPLE2, TUPLE3 */
static int op_tuple(vm *m, int op)
{
    const size_t n = (size_t)(op - 0x84);
    if (m->depth - fence(m) < n)
        return damage(m, "stack underflow");
    m->depth -= n;
    return make_sequence(m, MGR_NODE_TUPLE, m->stack + m->depth, n);
}

static int add_pairs(vm *m, mgr_node *dict, mgr_node *const *items, size_t n)
{
    if (dict->kind == MGR_NODE_OBJECT && dict->holds != MGR_HOLDS_ELEMENTS)
        dict->holds = MGR_HOLDS_PAIRS;
    else if (dict->kind != MGR_NODE_DICT)
        return damage(m, "pairs for something that is no dict");
    if (n % 2)
        return damage(m, "a key without a value");
    for (size_t i = 0; i < n; i += 2)
        if (items[i]->kind == MGR_NODE_LIST || items[i]->kind == MGR_NODE_DICT ||
            items[i]->kind == MGR_NODE_SET)
            return damage(m, "a key that cannot be hashed");
    return append_items(m, dict, items, n);
}

static int add_elements(vm *m, int op, mgr_node *list, mgr_node *const *items, size_t n)
{
    const mgr_node_kind plain = op == 0x90 ? MGR_NODE_SET : MGR_NODE_LIST;
    if (list->kind == MGR_NODE_OBJECT && list->holds != MGR_HOLDS_PAIRS)
        list->holds = MGR_HOLDS_ELEMENTS;
    else if (list->kind != plain)
        return damage(m, "elements for something that is no list or set");
    return append_items(m, list, items, n);
}

/* SETITEM, APPEND */
static int op_add_one(vm *m, int op)
{
    mgr_node *container, *pair[2];
    if (op == 's')
        MGR_TRY(pop(m, &pair[1]));
    MGR_TRY(pop(m, &pair[0]));
    MGR_TRY(top(m, &container));
    return op == 's' ? add_pairs(m, container, pair, 2) : add_elements(m, op, container, pair, 1);
}

/* SETITEMS, APPENDS, ADDITEMS */
static int op_add_many(vm *m, int op)
{
    mgr_node *container;
    mgr_node *const *items;
    size_t n;
    MGR_TRY(pop_mark(m, &items, &n));
    MGR_TRY(top(m, &container));
    return op == 'u' ? add_pairs(m, container, items, n) : add_elements(m, op, container, items, n);
}

/* DICT: pairs above the mark. The items lie above the top of the stack until the next push. */
static int op_dict(vm *m, int op)
{
    mgr_node *dict;
    mgr_node *const *items;
    size_t n;
    (void)op;
    MGR_TRY(pop_mark(m, &items, &n));
    MGR_TRY(new_node(m, MGR_NODE_DICT, &dict));
    MGR_TRY(add_pairs(m, dict, items, n));
    return push(m, dict);
}

static int op_pop(vm *m, int op)
{
    mgr_node *node;
    mgr_node *const *items;
    size_t n;
    if (op == '1' || (m->n_marks && m->depth == fence(m)))
        return pop_mark(m, &items, &n);
    return pop(m, &node);
}

static int op_dup(vm *m, int op)
{
    mgr_node *node;
    (void)op;
    MGR_TRY(top(m, &node));
    return push(m, node);
}

/* BINPUT u8, LONG_BINPUT u32, MEMOIZE. Python counts the indices up, so a large one in a short
 * pickle is a trick to make the memo large. */
static int op_put(vm *m, int op)
{
    mgr_node *node;
    uint64_t idx = m->n_memo;
    MGR_TRY(top(m, &node));
    if (op != 0x94)
        MGR_TRY(take_uint(m, op == 'q' ? 1 : 4, &idx));
    if (idx > m->n_ops + 255)
        return damage(m, "memo index out of proportion");
    const size_t before = m->cap_memo;
    MGR_TRY(mgr_grow(&m->memo, &m->cap_memo, (size_t)idx + 1, sizeof *m->memo, m->err));
    MGR_TRY(charge(m, (m->cap_memo - before) * sizeof *m->memo));
    m->n_memo += !m->memo[idx];
    m->memo[idx] = node;
    return MGR_OK;
}

/* BINGET u8, LONG_BINGET u32 */
static int op_get(vm *m, int op)
{
    uint64_t idx;
    MGR_TRY(take_uint(m, op == 'h' ? 1 : 4, &idx));
    if (idx >= m->cap_memo || !m->memo[idx])
        return damage(m, "memo entry that was never written");
    return push(m, m->memo[idx]);
}

/* GLOBAL module "\n" name "\n" */
static int op_global(vm *m, int op)
{
    const char *module, *name;
    size_t module_len, name_len;
    (void)op;
    MGR_TRY(take_line(m, MAX_GLOBAL, &module, &module_len));
    MGR_TRY(take_line(m, MAX_GLOBAL, &name, &name_len));
    return make_global(m, module, module_len, name, name_len);
}

static int op_stack_global(vm *m, int op)
{
    mgr_node *module, *name;
    (void)op;
    MGR_TRY(pop(m, &name));
    MGR_TRY(pop(m, &module));
    if (module->kind != MGR_NODE_TEXT || name->kind != MGR_NODE_TEXT)
        return damage(m, "a global is not named by text");
    return make_global(m, module->u.s.bytes, module->u.s.len, name->u.s.bytes, name->u.s.len);
}

static int op_persid(vm *m, int op)
{
    mgr_node *id, *node;
    (void)op;
    MGR_TRY(pop(m, &id));
    MGR_TRY(new_node(m, MGR_NODE_PERSID, &node));
    node->u.persid = id;
    return push(m, node);
}

/* Text of code points up to 255 as the bytes they stand for: bytes in protocol 2 are
 * _codecs.encode(text, 'latin1'). */
static int encode_latin1(vm *m, const mgr_node *text, mgr_node **out)
{
    const unsigned char *const s = (const unsigned char *)text->u.s.bytes;
    const size_t len = text->u.s.len;
    char *bytes;
    size_t n = 0;
    MGR_TRY(arena(m, &bytes, len + 1));
    for (size_t i = 0; i < len; i++) {
        if (s[i] < 0x80) {
            bytes[n++] = (char)s[i];
        } else if (s[i] == 0xc2 || s[i] == 0xc3) { /* U+0080 .. U+00FF; the text is valid UTF-8 */
            bytes[n++] = (char)((s[i] & 3) << 6 | (s[i + 1] & 0x3f));
            i++;
        } else {
            return damage(m, "latin-1 text with characters beyond U+00FF");
        }
    }
    MGR_TRY(new_node(m, MGR_NODE_BYTES, out));
    (*out)->u.s.bytes = bytes;
    (*out)->u.s.len = n;
    return MGR_OK;
}

static bool is_latin1(const mgr_node *text, const mgr_node *codec)
{
    const char *const name = mgr_node_text(codec);
    return text->kind == MGR_NODE_TEXT && name &&
           (strcmp(name, "latin1") == 0 || strcmp(name, "latin-1") == 0);
}

/* bytes and bytearray have no opcode in protocol 2; they come as calls. *out stays NULL for all
 * that is no such call. */
static int make_known(vm *m, const mgr_node *callable, const mgr_node *args, mgr_node **out)
{
    const size_t n = args->u.c.n;
    mgr_node *const *const arg = args->u.c.items;
    const bool builtin = mgr_node_is_global(callable, "__builtin__", "bytes") ||
                         mgr_node_is_global(callable, "__builtin__", "bytearray");
    if (builtin && n == 0)
        return make_bytes(m, MGR_NODE_BYTES, "", 0, out);
    if (builtin && n == 1 && arg[0]->kind == MGR_NODE_BYTES) {
        MGR_TRY(new_node(m, MGR_NODE_BYTES, out));
        (*out)->u.s = arg[0]->u.s;
        return MGR_OK;
    }
    if ((builtin || mgr_node_is_global(callable, "_codecs", "encode")) && n == 2 &&
        is_latin1(arg[0], arg[1]))
        return encode_latin1(m, arg[0], out);
    return MGR_OK;
}

/* REDUCE: callable args. NEWOBJ: class args. NEWOBJ_EX: class args kwargs. */
static int op_call(vm *m, int op)
{
    mgr_node *callable, *args, *kwargs = NULL, *node = NULL;
    mgr_call *call;
    if (op == 0x92)
        MGR_TRY(pop(m, &kwargs));
    MGR_TRY(pop(m, &args));
    MGR_TRY(pop(m, &callable));
    if (callable->kind != MGR_NODE_GLOBAL && !mgr_node_is_call(callable, "__builtin__", "getattr"))
        return damage(m, "a call of something that is no global");
    if (args->kind != MGR_NODE_TUPLE || (kwargs && kwargs->kind != MGR_NODE_DICT))
        return damage(m, "a call with arguments that are no tuple");
    /* how Python 3.11.2 writes enums, and every Python bound methods of classes */
    if (mgr_node_is_global(callable, "__builtin__", "getattr") &&
        (args->u.c.n != 2 || args->u.c.items[0]->kind != MGR_NODE_GLOBAL ||
         !mgr_node_text(args->u.c.items[1])))
        return refuse(m, MGR_ERR_FORMAT, "getattr of something else than a class and a name");
    if (op == 'R')
        MGR_TRY(make_known(m, callable, args, &node));
    if (node)
        return push(m, node);
    MGR_TRY(new_node(m, MGR_NODE_OBJECT, &node));
    MGR_TRY(arena(m, &call, sizeof *call));
    *call = (mgr_call){callable, args, kwargs, NULL, op != 'R'};
    node->u.c.call = call;
    return push(m, node);
}

static int op_build(vm *m, int op)
{
    mgr_node *state, *node;
    (void)op;
    MGR_TRY(pop(m, &state));
    MGR_TRY(top(m, &node));
    if (node->kind != MGR_NODE_OBJECT)
        return damage(m, "state for something that is no object");
    if (node->u.c.call->state)
        return damage(m, "an object gets its state twice");
    node->u.c.call->state = state;
    return MGR_OK;
}

static int op_proto(vm *m, int op)
{
    (void)op;
    return damage(m, "PROTO in the middle");
}

/* FRAME u64: a promise about the next bytes that only helps a reader with buffers */
static int op_frame(vm *m, int op)
{
    uint64_t len;
    (void)op;
    MGR_TRY(take_uint(m, 8, &len));
    if (len > m->len - m->pos)
        return damage(m, "frame passes the end");
    return MGR_OK;
}

static int op_stop(vm *m, int op)
{
    (void)op;
    if (m->n_marks != 0 || m->depth != 1)
        return damage(m, "STOP with other than one object on the stack");
    m->out->root = m->stack[0];
    m->done = true;
    return MGR_OK;
}

/* EXT1-4 take a registry, INST and OBJ are of Python 2 classes, 97 and 98 want buffers that are
 * not in the pickle, the rest is text of protocol 0. */
static int op_unsupported(vm *m, int op)
{
    char what[64];
    snprintf(what, sizeof what, "opcode 0x%02x is not supported", (unsigned)op);
    return refuse(m, MGR_ERR_UNSUPPORTED, what);
}

typedef int op_handler(vm *m, int op);

static op_handler *const handlers[256] = {
    [0x80] = op_proto,       ['.'] = op_stop,         [0x95] = op_frame,
    ['N'] = op_none,         [0x88] = op_bool,        [0x89] = op_bool,
    ['J'] = op_binint,       ['K'] = op_binint,       ['M'] = op_binint,
    [0x8a] = op_long,        [0x8b] = op_long,        ['I'] = op_int_text,
    ['L'] = op_int_text,     ['G'] = op_binfloat,     ['F'] = op_float_text,
    ['X'] = op_text,         [0x8c] = op_text,        [0x8d] = op_text,
    ['T'] = op_text,         ['U'] = op_text,         ['B'] = op_bytes,
    ['C'] = op_bytes,        [0x8e] = op_bytes,       [0x96] = op_bytes,
    ['('] = op_mark,         [')'] = op_empty,        ['}'] = op_empty,
    [']'] = op_empty,        [0x8f] = op_empty,       ['t'] = op_collect,
    ['l'] = op_collect,      [0x91] = op_collect,     [0x85] = op_tuple,
    [0x86] = op_tuple,       [0x87] = op_tuple,       ['d'] = op_dict,
    ['s'] = op_add_one,      ['a'] = op_add_one,      ['u'] = op_add_many,
    ['e'] = op_add_many,     [0x90] = op_add_many,    ['0'] = op_pop,
    ['1'] = op_pop,          ['2'] = op_dup,          ['q'] = op_put,
    ['r'] = op_put,          [0x94] = op_put,         ['h'] = op_get,
    ['j'] = op_get,          ['c'] = op_global,       [0x93] = op_stack_global,
    ['Q'] = op_persid,       ['R'] = op_call,         [0x81] = op_call,
    [0x92] = op_call,        ['b'] = op_build,        [0x82] = op_unsupported,
    [0x83] = op_unsupported, [0x84] = op_unsupported, [0x97] = op_unsupported,
    [0x98] = op_unsupported, ['i'] = op_unsupported,  ['o'] = op_unsupported,
    ['P'] = op_unsupported,  ['p'] = op_unsupported,  ['g'] = op_unsupported,
    ['S'] = op_unsupported,  ['V'] = op_unsupported,
};

static int run(vm *m)
{
    MGR_TRY(new_node(m, MGR_NODE_TUPLE, &m->empty));
    MGR_TRY(mgr_grow(&m->stack, &m->cap_stack, 1, sizeof *m->stack, m->err)); /* never NULL */
    if (m->len < 2 || m->bytes[0] != 0x80)
        return damage(m, "it does not start with a protocol number");
    m->out->protocol = m->bytes[1];
    if (m->out->protocol < 2 || m->out->protocol > 5)
        return refuse(m, MGR_ERR_UNSUPPORTED, "its protocol is not 2, 3, 4 or 5");
    m->pos = 2;
    while (!m->done) {
        m->op_at = m->pos;
        if (m->pos == m->len)
            return damage(m, "it is truncated: no STOP");
        const int op = m->bytes[m->pos++];
        m->n_ops++;
        if (!handlers[op])
            return damage(m, "unknown opcode");
        MGR_TRY(handlers[op](m, op));
    }
    m->out->used = m->pos;
    return MGR_OK;
}

int mgr_pickle_read(mgr_pickle *pickle, const char *name, const void *bytes, size_t len,
                    const mgr_pickle_limits *limits, mgr_err *err)
{
    vm m = {.bytes = bytes, .len = len, .name = name, .out = pickle, .err = err};
    if (limits)
        m.limits = *limits;
    if (!m.limits.allow) {
        m.limits.allow = mgr_pickle_torch_rules;
        m.limits.n_allow = mgr_pickle_n_torch_rules;
    }
    if (!m.limits.memory)
        m.limits.memory = DEFAULT_MEMORY;
    if (!m.limits.max_nodes)
        m.limits.max_nodes = DEFAULT_NODES;
    *pickle = (mgr_pickle){0};
    const int rc = run(&m);
    mgr_free(m.stack);
    mgr_free(m.marks);
    mgr_free(m.memo);
    if (rc)
        mgr_pickle_clear(pickle);
    return rc;
}

void mgr_pickle_clear(mgr_pickle *pickle)
{
    mgr_arena_clear(&pickle->arena);
    *pickle = (mgr_pickle){0};
}
