#include "fmt/torch_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "fmt/literal.h"
#include "fmt/pickle.h"
#include "fmt/torch_kind.h"
#include "fmt/zip.h"

/*
 * A torch.save file is a zip archive (src/fmt/README.md):
 *
 *   <folder>/data.pkl    pickle; tensors refer to storages by persistent ids
 *   <folder>/data/<key>  the bytes of one storage
 *   <folder>/version     "3\n"
 *   <folder>/byteorder   "little"
 *
 * The pickle of Megatron-LM is a dict with "model" (or "model0", "model1", ...), "args" and more.
 */
#define PICKLE_LIMIT (UINT64_C(512) << 20)
#define SMALL_LIMIT 64                 /* version, byteorder */
#define MAX_DEPTH 64                   /* of dicts in dicts */
#define MAX_NAME 1024                  /* bytes of a tensor's joined name */
#define MAX_KEY 200                    /* bytes of a storage's key */
#define MAX_WRAPPERS 8                 /* parameter around tensor around ... */
#define MAX_TENSORS (1u << 20)         /* of one file */
#define MAX_ATTRS (UINT64_C(64) << 20) /* bytes of all attributes: shared text is copied */
#define NAME_SHOWN 200

/* One member of the archive, by name, and what a tensor has said about it. */
typedef struct storage {
    const mgr_zip_member *member;
    uint32_t record; /* MGR_NONE until a tensor uses it, and in archives without CRCs */
    bool used;
    mgr_dtype dtype; /* of its storage class, MGR_DTYPE_NONE for UntypedStorage */
} storage;

typedef struct torch_file {
    mgr_catalogue *cat;
    uint32_t file;
    const mgr_reader *reader;
    mgr_zip zip;
    mgr_pickle pickle;
    storage *storages; /* all members, sorted by name */
    bool has_crcs;
    size_t first; /* number of tensors in the catalogue before this file */
    uint64_t attr_bytes;
    mgr_buf name; /* of the entry at hand */
    mgr_err *err;
} torch_file;

/* ---- the archive ---- */

/* A small text member without its newline, into `out`; false if there is none. */
static int read_small(torch_file *t, const char *name, char *out, size_t size, bool *found)
{
    const mgr_zip_member *const member = mgr_zip_find(&t->zip, name);
    unsigned char *bytes;
    *found = member != NULL;
    if (!member)
        return MGR_OK;
    MGR_TRY(mgr_zip_read(&t->zip, t->reader, member, SMALL_LIMIT, &bytes, t->err));
    size_t len = (size_t)member->size;
    while (len > 0 && (bytes[len - 1] == '\n' || bytes[len - 1] == '\r'))
        len--;
    mgr_printable((const char *)bytes, len, out, size);
    mgr_free(bytes);
    return MGR_OK;
}

/* torch takes 1 .. 10 and writes 3. */
static int check_version(torch_file *t)
{
    char text[SMALL_LIMIT + 1];
    bool found;
    MGR_TRY(read_small(t, "version", text, sizeof text, &found));
    if (!found)
        MGR_TRY(read_small(t, ".data/version", text, sizeof text, &found));
    if (!found)
        return mgr_fail(t->err, MGR_ERR_FORMAT, "'%s' has no member '%s/version'", t->reader->name,
                        t->zip.folder);
    const size_t len = strlen(text);
    if (len == 0 || strspn(text, "0123456789") != len)
        return mgr_fail(t->err, MGR_ERR_FORMAT, "member '%s/version' of '%s' is '%s', no number",
                        t->zip.folder, t->reader->name, text);
    const long version = len > 4 ? 9999 : strtol(text, NULL, 10);
    if (version < 1 || version > 10)
        return mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                        "'%s' has archive version %s, known are 1 .. 10", t->reader->name, text);
    return MGR_OK;
}

static int check_byteorder(torch_file *t)
{
    char text[SMALL_LIMIT + 1];
    bool found;
    MGR_TRY(read_small(t, "byteorder", text, sizeof text, &found));
    if (!found || strcmp(text, "little") == 0)
        return MGR_OK;
    if (strcmp(text, "big") == 0)
        return mgr_fail(t->err, MGR_ERR_UNSUPPORTED, "'%s' was written on a big-endian machine",
                        t->reader->name);
    return mgr_fail(t->err, MGR_ERR_FORMAT, "member '%s/byteorder' of '%s' is '%s'", t->zip.folder,
                    t->reader->name, text);
}

static int by_name(const void *a, const void *b)
{
    const storage *const sa = a;
    const storage *const sb = b;
    return strcmp(sa->member->name, sb->member->name);
}

/* An index of the members. An archive in which every CRC is zero has none (torch's compute_crc32 =
 * False, see zip.c); its members get no records. */
static int index_members(torch_file *t)
{
    const size_t n = t->zip.n_members;
    MGR_TRY(mgr_alloc(&t->storages, n, sizeof *t->storages, t->err));
    for (size_t i = 0; i < n; i++) {
        t->storages[i].member = &t->zip.members[i];
        t->storages[i].record = MGR_NONE;
        t->has_crcs = t->has_crcs || t->zip.members[i].crc32 != 0;
    }
    qsort(t->storages, n, sizeof *t->storages, by_name);
    return MGR_OK;
}

static int open_archive(torch_file *t)
{
    unsigned char *bytes = NULL;
    MGR_TRY(mgr_torch_kind_check(t->reader, t->err));
    MGR_TRY(mgr_zip_open(&t->zip, t->reader, t->err));
    if (mgr_zip_find(&t->zip, "constants.pkl")) {
        mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                 "'%s' is a TorchScript archive, not a torch.save file", t->reader->name);
        return mgr_hint(t->err, "save a state dict with torch.save");
    }
    const mgr_zip_member *const data = mgr_zip_find(&t->zip, "data.pkl");
    if (!data)
        return mgr_fail(t->err, MGR_ERR_FORMAT, "'%s' has no member '%s/data.pkl'", t->reader->name,
                        t->zip.folder);
    MGR_TRY(check_version(t));
    MGR_TRY(check_byteorder(t));
    MGR_TRY(index_members(t));
    MGR_TRY(mgr_zip_read(&t->zip, t->reader, data, PICKLE_LIMIT, &bytes, t->err));
    const mgr_pickle_limits limits = {.base = t->reader->base + data->offset};
    const int rc =
        mgr_pickle_read(&t->pickle, t->reader->name, bytes, (size_t)data->size, &limits, t->err);
    mgr_free(bytes);
    return rc;
}

/* ---- tensors ---- */

static int bad_tensor(torch_file *t, mgr_code code, const mgr_node *node, const char *what)
{
    char shown[NAME_SHOWN];
    mgr_fail(t->err, code, "tensor '%s' of '%s' at byte %" PRIu64 ": %s",
             mgr_printable(t->name.data, t->name.len, shown, sizeof shown), t->reader->name,
             node->at, what);
    return (int)code;
}

static bool is_tensor_engine(const mgr_node *global)
{
    return global && global->kind == MGR_NODE_GLOBAL &&
           mgr_has_prefix(global->u.g.module, "transformer_engine");
}

static int fp8_tensor(torch_file *t, const mgr_node *node)
{
    bad_tensor(t, MGR_ERR_UNSUPPORTED, node, "FP8 parameters are not supported");
    return mgr_hint(t->err, "save the checkpoint without --fp8-param-gather");
}

/* A call of one of torch's rebuild functions. */
typedef struct rebuild {
    const mgr_node *function; /* a GLOBAL */
    mgr_node *const *args;
    size_t n;
} rebuild;

static bool is_rebuild(const mgr_node *function, const char *name)
{
    return mgr_node_is_global(function, "torch._utils", name);
}

static rebuild rebuild_of(const mgr_node *node)
{
    const mgr_node *const callable = mgr_node_callable(node);
    if (!callable)
        return (rebuild){0};
    const mgr_node *const args = node->u.c.call->args;
    return (rebuild){callable, args->u.c.items, args->u.c.n};
}

/* _rebuild_from_type_v2(function, type, args, state): a plain tensor that carries attributes, or a
 * subclass, which may hold its data in any way. */
static int unwrap_type(torch_file *t, const mgr_node *node, rebuild *r)
{
    if (r->n != 4 || r->args[0]->kind != MGR_NODE_GLOBAL || r->args[1]->kind != MGR_NODE_GLOBAL ||
        r->args[2]->kind != MGR_NODE_TUPLE)
        return bad_tensor(t, MGR_ERR_FORMAT, node, "damaged arguments of _rebuild_from_type_v2");
    const mgr_node *const type = r->args[1];
    if (is_tensor_engine(type))
        return fp8_tensor(t, node);
    if (!mgr_node_is_global(type, "torch", "Tensor") &&
        strcmp(type->u.g.module, "torch.nn.parameter") != 0) {
        char what[NAME_SHOWN + 40];
        snprintf(what, sizeof what, "tensor subclass '%.100s.%.80s' is not supported",
                 type->u.g.module, type->u.g.name);
        return bad_tensor(t, MGR_ERR_UNSUPPORTED, node, what);
    }
    const mgr_node *const args = r->args[2];
    *r = (rebuild){r->args[0], args->u.c.items, args->u.c.n};
    return MGR_OK;
}

/* Take parameters and types off until a function that makes a tensor of a storage is left.
 * `r->function` is NULL if `node` is no tensor at all. */
static int unwrap(torch_file *t, const mgr_node *node, rebuild *r)
{
    *r = rebuild_of(node);
    for (int i = 0; i < MAX_WRAPPERS && r->function; i++) {
        if (is_rebuild(r->function, "_rebuild_parameter") ||
            is_rebuild(r->function, "_rebuild_parameter_with_state")) {
            if (r->n == 0)
                return bad_tensor(t, MGR_ERR_FORMAT, node, "a parameter without its tensor");
            if (is_tensor_engine(mgr_node_class(r->args[0])))
                return fp8_tensor(t, node);
            *r = rebuild_of(r->args[0]);
        } else if (mgr_node_is_global(r->function, "torch._tensor", "_rebuild_from_type_v2")) {
            MGR_TRY(unwrap_type(t, node, r));
        } else {
            break;
        }
    }
    return MGR_OK;
}

static bool is_key(const char *key)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    const size_t len = strlen(key);
    return len > 0 && len <= MAX_KEY && strspn(key, letters) == len;
}

static storage *find_storage(torch_file *t, const char *key)
{
    size_t low = 0, high = t->zip.n_members;
    const size_t folder = strlen(t->zip.folder);
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        const char *const name = t->storages[mid].member->name + folder + 1;
        int order = strncmp("data/", name, 5);
        if (order == 0)
            order = strcmp(key, name + 5);
        if (order == 0)
            return &t->storages[mid];
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

/* persistent id := ('storage', class, key, location, numel)
 * numel counts elements of the class, bytes for UntypedStorage. */
typedef struct persid {
    const mgr_node *class;
    const char *key;
    int64_t numel;
    mgr_dtype dtype; /* MGR_DTYPE_NONE for UntypedStorage */
} persid;

static int read_persid(torch_file *t, const mgr_node *tensor, const mgr_node *node, persid *out)
{
    const mgr_node *const id = node->kind == MGR_NODE_PERSID ? node->u.persid : NULL;
    mgr_node *const *const item = id && id->kind == MGR_NODE_TUPLE ? id->u.c.items : NULL;
    const char *const kind = item && id->u.c.n == 5 ? mgr_node_text(item[0]) : NULL;
    if (!kind || strcmp(kind, "storage") != 0 || item[1]->kind != MGR_NODE_GLOBAL)
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its storage is no persistent id");
    out->class = item[1];
    out->key = mgr_node_text(item[2]);
    if (!out->key || !is_key(out->key))
        return bad_tensor(t, MGR_ERR_FORMAT, tensor,
                          "its storage key has other characters than letters, digits, '_.-'");
    if (!mgr_node_int(item[4], &out->numel) || out->numel < 0)
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its storage has no valid number of elements");
    out->dtype = mgr_dtype_from_storage(out->class->u.g.name);
    if (mgr_dtype_size(out->dtype) == 0 && strcmp(out->class->u.g.name, "UntypedStorage") != 0) {
        char what[NAME_SHOWN];
        snprintf(what, sizeof what, "element type of '%.100s' is not supported",
                 out->class->u.g.name);
        return bad_tensor(t, MGR_ERR_UNSUPPORTED, tensor, what);
    }
    return MGR_OK;
}

/* The member behind a persistent id; all tensors must say the same about it as its directory
 * entry. *bytes is its size. */
static int use_storage(torch_file *t, const mgr_node *tensor, const persid *id, storage **out)
{
    char what[2 * NAME_SHOWN];
    storage *const s = find_storage(t, id->key);
    uint64_t bytes;
    if (!s) {
        snprintf(what, sizeof what, "no member '%.100s/data/%s' in the archive", t->zip.folder,
                 id->key);
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, what);
    }
    if (s->member->method != 0) {
        snprintf(what, sizeof what, "member '%.300s' is compressed", s->member->name);
        return bad_tensor(t, MGR_ERR_UNSUPPORTED, tensor, what);
    }
    const size_t item = id->dtype == MGR_DTYPE_NONE ? 1 : mgr_dtype_size(id->dtype);
    if (mgr_mul_overflow((uint64_t)id->numel, item, &bytes) || bytes != s->member->size) {
        snprintf(what, sizeof what,
                 "%" PRId64 " elements of '%.60s' are not the %" PRIu64 " bytes of member '%.200s'",
                 id->numel, id->class->u.g.name, s->member->size, s->member->name);
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, what);
    }
    if (s->used && s->dtype != id->dtype)
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its storage has another type elsewhere");
    if (!s->used && t->has_crcs) {
        const mgr_record record = {.name = s->member->name,
                                   .file = t->file,
                                   .crc32 = s->member->crc32,
                                   .offset = t->reader->base + s->member->offset,
                                   .size = s->member->size};
        MGR_TRY(mgr_catalogue_add_record(t->cat, &record, &s->record, t->err));
    }
    s->used = true;
    s->dtype = id->dtype;
    *out = s;
    return MGR_OK;
}

static int read_dims(torch_file *t, const mgr_node *tensor, const mgr_node *node, uint32_t *ndim,
                     uint64_t *dims)
{
    mgr_node *const *items;
    size_t n;
    if (!mgr_node_elements(node, &items, &n))
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its size or stride is no tuple");
    if (n > MGR_MAX_NDIM)
        return bad_tensor(t, MGR_ERR_UNSUPPORTED, tensor, "it has too many dimensions");
    for (size_t d = 0; d < n; d++) {
        int64_t value;
        if (!mgr_node_int(items[d], &value) || value < 0)
            return bad_tensor(t, MGR_ERR_FORMAT, tensor,
                              "its size or stride is no positive number");
        dims[d] = (uint64_t)value;
    }
    *ndim = (uint32_t)n;
    return MGR_OK;
}

/* {'conj': True} and {'neg': True} say that the bytes are not the values. */
static int check_metadata(torch_file *t, const mgr_node *tensor, const mgr_node *metadata)
{
    if (metadata->kind == MGR_NODE_NONE)
        return MGR_OK;
    if (!mgr_node_is_dict(metadata))
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its metadata is no dict");
    for (size_t i = 0; i < mgr_node_n_pairs(metadata); i++) {
        const mgr_node *const value = mgr_node_value(metadata, i);
        if (value->kind != MGR_NODE_BOOL || value->u.i)
            return bad_tensor(t, MGR_ERR_UNSUPPORTED, tensor,
                              "it has metadata (conjugate, negative) that change its values");
    }
    return MGR_OK;
}

/* The element type: of the storage class, or the argument of _rebuild_tensor_v3. */
static int read_dtype(torch_file *t, const mgr_node *tensor, const rebuild *r, const persid *id,
                      mgr_dtype *out)
{
    *out = id->dtype;
    if (is_rebuild(r->function, "_rebuild_tensor_v3")) {
        const mgr_node *const dtype = r->args[6];
        if (dtype->kind != MGR_NODE_GLOBAL || strcmp(dtype->u.g.module, "torch") != 0)
            return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its element type is no torch dtype");
        if (mgr_has_prefix(dtype->u.g.name, "float8") || mgr_has_prefix(dtype->u.g.name, "float4"))
            return fp8_tensor(t, tensor);
        *out = mgr_dtype_from_name(dtype->u.g.name);
        if (mgr_dtype_size(*out) == 0) {
            char what[NAME_SHOWN];
            snprintf(what, sizeof what, "element type 'torch.%.100s' is not supported",
                     dtype->u.g.name);
            return bad_tensor(t, MGR_ERR_UNSUPPORTED, tensor, what);
        }
    }
    if (*out == MGR_DTYPE_NONE)
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its storage has no element type");
    return MGR_OK;
}

/* Every element must lie in the storage, and there may be no more of them than it has room for:
 * stride 0 lets a few bytes claim to be terabytes. */
static int check_extent(torch_file *t, const mgr_node *tensor, const mgr_stored *stored,
                        uint64_t offset, uint64_t bytes)
{
    const uint64_t room = bytes / mgr_dtype_size(stored->dtype);
    uint64_t numel = 1, last = offset;
    for (uint32_t d = 0; d < stored->ndim; d++)
        if (stored->shape[d] == 0)
            return MGR_OK; /* no elements: nothing is read */
    for (uint32_t d = 0; d < stored->ndim; d++) {
        uint64_t step;
        if (mgr_mul_overflow(numel, stored->shape[d], &numel) ||
            mgr_mul_overflow(stored->shape[d] - 1, stored->stride[d], &step) ||
            mgr_add_overflow(last, step, &last))
            return bad_tensor(t, MGR_ERR_FORMAT, tensor, "its extent overflows 64 bits");
    }
    if (last >= room)
        return bad_tensor(t, MGR_ERR_FORMAT, tensor, "it reaches past the end of its storage");
    if (numel > room)
        return bad_tensor(t, MGR_ERR_UNSUPPORTED, tensor,
                          "it has more elements than its storage (expanded with stride 0)");
    return MGR_OK;
}

/* _rebuild_tensor    (storage, offset, size, stride)
 * _rebuild_tensor_v2 (storage, offset, size, stride, requires_grad, hooks[, metadata])
 * _rebuild_tensor_v3 (storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]) */
static int add_tensor(torch_file *t, const mgr_node *node, const rebuild *r)
{
    const bool v1 = is_rebuild(r->function, "_rebuild_tensor");
    const bool v2 = is_rebuild(r->function, "_rebuild_tensor_v2");
    const size_t least = v1 ? 4 : v2 ? 6 : 7, most = v1 ? 4 : v2 ? 7 : 8;
    mgr_stored stored = {.file = t->file, .name = t->name.data};
    persid id;
    storage *s;
    int64_t offset;
    uint32_t n_strides;
    if (t->cat->n_stored - t->first >= MAX_TENSORS)
        return bad_tensor(t, MGR_ERR_UNSUPPORTED, node, "one file holds too many tensors");
    if (r->n < least || r->n > most)
        return bad_tensor(t, MGR_ERR_FORMAT, node, "wrong number of arguments");
    MGR_TRY(read_persid(t, node, r->args[0], &id));
    MGR_TRY(read_dtype(t, node, r, &id, &stored.dtype));
    if (!mgr_node_int(r->args[1], &offset) || offset < 0)
        return bad_tensor(t, MGR_ERR_FORMAT, node, "its storage offset is no positive number");
    MGR_TRY(read_dims(t, node, r->args[2], &stored.ndim, stored.shape));
    MGR_TRY(read_dims(t, node, r->args[3], &n_strides, stored.stride));
    if (stored.ndim != n_strides)
        return bad_tensor(t, MGR_ERR_FORMAT, node, "size and stride have different lengths");
    if (r->n == most && !v1)
        MGR_TRY(check_metadata(t, node, r->args[most - 1]));
    MGR_TRY(use_storage(t, node, &id, &s));
    MGR_TRY(check_extent(t, node, &stored, (uint64_t)offset, s->member->size));
    stored.record = s->record;
    stored.offset = t->reader->base + s->member->offset;
    uint64_t skip;
    if (!mgr_mul_overflow((uint64_t)offset, mgr_dtype_size(stored.dtype), &skip) &&
        skip <= s->member->size)
        stored.offset += skip; /* otherwise it has no elements */
    return mgr_catalogue_add_stored(t->cat, &stored, t->err);
}

static bool is_byte_tensor(const rebuild *r)
{
    const mgr_node *const id =
        r->n > 0 && r->args[0]->kind == MGR_NODE_PERSID ? r->args[0]->u.persid : NULL;
    return r->function && r->function->kind == MGR_NODE_GLOBAL && id &&
           id->kind == MGR_NODE_TUPLE && id->u.c.n == 5 &&
           mgr_node_is_global(id->u.c.items[1], "torch", "ByteStorage");
}

static int bad_entry(torch_file *t, mgr_code code, const mgr_node *node, const char *expected)
{
    char shown[NAME_SHOWN], kind[NAME_SHOWN + 40];
    mgr_fail(t->err, code, "entry '%s' of '%s' at byte %" PRIu64 " is a '%s', expected %s",
             mgr_printable(t->name.data, t->name.len, shown, sizeof shown), t->reader->name,
             node->at, mgr_node_describe(node, kind, sizeof kind), expected);
    return (int)code;
}

/* Extra state belongs to Transformer Engine's FP8 recipes; it is None, io.BytesIO or bytes in a
 * tensor, and never weights. */
static int skip_extra_state(torch_file *t, const mgr_node *node)
{
    rebuild r = {0};
    MGR_TRY(unwrap(t, node, &r));
    if (node->kind != MGR_NODE_NONE && node->kind != MGR_NODE_BYTES &&
        !mgr_node_is_call(node, "_io", "BytesIO") && !is_byte_tensor(&r))
        return bad_entry(t, MGR_ERR_UNSUPPORTED, node, "extra state (None, BytesIO, uint8 tensor)");
    t->cat->skipped[MGR_SKIP_EXTRA_STATE]++;
    return MGR_OK;
}

/* One value of the model that is no dict. */
static int read_leaf(torch_file *t, const mgr_node *node)
{
    rebuild r;
    if (mgr_has_suffix(t->name.data, "_extra_state"))
        return skip_extra_state(t, node);
    if (is_tensor_engine(mgr_node_class(node)))
        return fp8_tensor(t, node);
    MGR_TRY(unwrap(t, node, &r));
    if (is_rebuild(r.function, "_rebuild_tensor") || is_rebuild(r.function, "_rebuild_tensor_v2") ||
        is_rebuild(r.function, "_rebuild_tensor_v3"))
        return add_tensor(t, node, &r);
    if (is_tensor_engine(r.function))
        return fp8_tensor(t, node);
    return bad_entry(t, MGR_ERR_UNSUPPORTED, node, "a tensor");
}

/* ---- the model: dicts in dicts, keys joined with '.' ---- */

typedef struct frame {
    const mgr_node *dict;
    size_t next;     /* pair */
    size_t name_len; /* of the dict's own name */
} frame;

static int bad_key(torch_file *t, const mgr_node *key, const char *what)
{
    char shown[NAME_SHOWN];
    mgr_fail(t->err, MGR_ERR_UNSUPPORTED, "a key in entry '%s' of '%s' at byte %" PRIu64 " %s",
             mgr_printable(t->name.data, t->name.len, shown, sizeof shown), t->reader->name,
             key->at, what);
    return MGR_ERR_UNSUPPORTED;
}

static int join_name(torch_file *t, const frame *f, const mgr_node *key)
{
    const char *const text = mgr_node_text(key);
    t->name.len = f->name_len;
    t->name.data[t->name.len] = '\0';
    if (!text || !*text)
        return bad_key(t, key, "is no text");
    if (f->name_len + 1 + key->u.s.len > MAX_NAME)
        return bad_key(t, key, "is too long");
    MGR_TRY(mgr_buf_add(&t->name, ".", 1, t->err));
    return mgr_buf_add(&t->name, text, key->u.s.len, t->err);
}

/* A dict can be reached by many ways, or hold itself: the depth and the number of steps, which in
 * a tree is below the number of nodes, are bounded. */
static int read_model(torch_file *t, const char *key, const mgr_node *model)
{
    frame stack[MAX_DEPTH];
    size_t depth = 1, steps = 0;
    t->name.len = 0;
    MGR_TRY(mgr_buf_text(&t->name, key, t->err));
    if (!mgr_node_is_dict(model))
        return bad_entry(t, MGR_ERR_UNSUPPORTED, model, "a dict of tensors");
    stack[0] = (frame){model, 0, t->name.len};
    while (depth > 0) {
        frame *const f = &stack[depth - 1];
        if (f->next == mgr_node_n_pairs(f->dict)) {
            depth--;
            continue;
        }
        const mgr_node *const value = mgr_node_value(f->dict, f->next);
        MGR_TRY(join_name(t, f, mgr_node_key(f->dict, f->next)));
        f->next++;
        if (++steps > t->pickle.n_nodes)
            return bad_entry(t, MGR_ERR_UNSUPPORTED, value, "dicts that do not share their parts");
        if (!mgr_node_is_dict(value) || mgr_has_suffix(t->name.data, "_extra_state")) {
            MGR_TRY(read_leaf(t, value));
            continue;
        }
        if (depth == MAX_DEPTH)
            return bad_entry(t, MGR_ERR_UNSUPPORTED, value, "dicts that are not nested so deep");
        stack[depth++] = (frame){value, 0, t->name.len};
    }
    return MGR_OK;
}

/* ---- attributes ---- */

/* megatron.core.enums.ModelType(1) and the like: a call of a class with one number or text. */
static bool is_enum(const mgr_node *node)
{
    static const char *const others[] = {"torch", "numpy",       "pathlib",
                                         "_",     "collections", "copy_reg"};
    const mgr_node *const class = mgr_node_callable(node), *const value = mgr_node_arg(node, 0);
    if (!class || class->kind != MGR_NODE_GLOBAL || node->u.c.call->newobj ||
        mgr_node_n_args(node) != 1 || mgr_node_state(node) || node->u.c.n ||
        (value->kind != MGR_NODE_INT && !mgr_node_text(value)))
        return false;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (mgr_has_prefix(class->u.g.module, others[i]))
            return false;
    return true;
}

/* Kinds that are scalars only in the checkpoint's eyes, spelt as text; false for others. */
static int spell(torch_file *t, const mgr_node *node, mgr_buf *out, bool *done)
{
    *done = true;
    if (node->kind == MGR_NODE_GLOBAL && strcmp(node->u.g.module, "torch") == 0 &&
        node->u.g.name[0] >= 'a')
        return mgr_buf_fmt(out, t->err, "torch.%s", node->u.g.name);
    if (is_enum(node)) {
        const mgr_node *const value = mgr_node_arg(node, 0);
        const char *const class = mgr_node_callable(node)->u.g.name;
        if (value->kind == MGR_NODE_INT)
            return mgr_buf_fmt(out, t->err, "%s(%" PRId64 ")", class, value->u.i);
        return mgr_buf_fmt(out, t->err, "%s(%s)", class, mgr_node_text(value));
    }
    if (mgr_node_is_call(node, "__builtin__", "getattr")) /* the enums of Python 3.11.2 */
        return mgr_buf_fmt(out, t->err, "%s.%s", mgr_node_arg(node, 0)->u.g.name,
                           mgr_node_text(mgr_node_arg(node, 1)));
    *done = false;
    return MGR_OK;
}

static int add_attr(torch_file *t, const char *key, const mgr_node *node)
{
    mgr_attr attr = {.key = key, .file = t->file, .kind = MGR_ATTR_OTHER};
    char kind[NAME_SHOWN + 40];
    mgr_buf text = {0};
    bool spelt;
    int rc = spell(t, node, &text, &spelt);
    if (rc)
        goto out;
    if (spelt) {
        attr.kind = MGR_ATTR_SYMBOL;
        attr.text = text.data;
    } else if (node->kind == MGR_NODE_NONE) {
        attr.kind = MGR_ATTR_NULL;
    } else if (node->kind == MGR_NODE_BOOL || node->kind == MGR_NODE_INT) {
        attr.kind = node->kind == MGR_NODE_BOOL ? MGR_ATTR_BOOL : MGR_ATTR_INT;
        attr.i = node->u.i;
    } else if (node->kind == MGR_NODE_REAL) {
        attr.kind = MGR_ATTR_REAL;
        attr.r = node->u.r;
    } else if (mgr_node_text(node)) {
        attr.kind = MGR_ATTR_TEXT;
        attr.text = mgr_node_text(node);
    } else {
        rc = mgr_literal_spell(node, &text, t->err);
        attr.kind = text.len ? MGR_ATTR_LITERAL : MGR_ATTR_OTHER;
        attr.text = text.len ? text.data : mgr_node_describe(node, kind, sizeof kind);
        if (rc)
            goto out;
    }
    t->attr_bytes += strlen(key) + (attr.text ? strlen(attr.text) : 0);
    rc = t->attr_bytes > MAX_ATTRS
             ? mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                        "arguments of '%s' have more than %" PRIu64 " bytes of text",
                        t->reader->name, MAX_ATTRS)
             : mgr_catalogue_add_attr(t->cat, &attr, t->err);
out:
    mgr_buf_clear(&text);
    return rc;
}

static int compare_text(const void *a, const void *b)
{
    const char *const *const ta = a;
    const char *const *const tb = b;
    return strcmp(*ta, *tb);
}

/* `names` is sorted on return. */
static int check_unique(torch_file *t, const char **names, size_t n, const char *what)
{
    char shown[NAME_SHOWN];
    qsort(names, n, sizeof *names, compare_text);
    for (size_t i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return mgr_fail(t->err, MGR_ERR_FORMAT, "%s '%s' occurs twice in '%s'", what,
                            mgr_printable(names[i], strlen(names[i]), shown, sizeof shown),
                            t->reader->name);
    return MGR_OK;
}

/* Python writes no key twice; in a dict that says so nobody can tell which value is meant. */
static int check_keys(torch_file *t, const mgr_node *dict, const char *what)
{
    const char **names = NULL;
    size_t n = 0;
    MGR_TRY(mgr_alloc(&names, mgr_node_n_pairs(dict), sizeof *names, t->err));
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const char *const text = mgr_node_text(mgr_node_key(dict, i));
        if (text)
            names[n++] = text;
    }
    const int rc = check_unique(t, names, n, what);
    mgr_free(names);
    return rc;
}

/* argparse.Namespace (types.SimpleNamespace, a dict); one without attributes has no state. */
static int read_args(torch_file *t, const mgr_node *args)
{
    const bool namespace = mgr_node_is_call(args, "argparse", "Namespace") ||
                           mgr_node_is_call(args, "types", "SimpleNamespace");
    const mgr_node *const dict = namespace ? mgr_node_state(args) : args;
    if (namespace && !dict)
        return MGR_OK;
    if (!mgr_node_is_dict(dict))
        return add_attr(t, "args", args);
    MGR_TRY(check_keys(t, dict, "argument"));
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const char *const key = mgr_node_text(mgr_node_key(dict, i));
        if (!key)
            continue;
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, "args.", t->err));
        MGR_TRY(mgr_buf_text(&t->name, key, t->err));
        MGR_TRY(add_attr(t, t->name.data, mgr_node_value(dict, i)));
    }
    return MGR_OK;
}

/* ---- the top level ---- */

static bool is_model_key(const char *key)
{
    return mgr_has_prefix(key, "model") && strspn(key + 5, "0123456789") == strlen(key + 5);
}

static bool is_scalar(const mgr_node *node)
{
    return node->kind == MGR_NODE_NONE || node->kind == MGR_NODE_BOOL ||
           node->kind == MGR_NODE_INT || node->kind == MGR_NODE_REAL || mgr_node_text(node);
}

static int read_entry(torch_file *t, const char *key, const mgr_node *value)
{
    if (is_model_key(key))
        return read_model(t, key, value);
    if (strcmp(key, "args") == 0)
        return read_args(t, value);
    if (strcmp(key, "optimizer") == 0 || strcmp(key, "opt_param_scheduler") == 0 ||
        strcmp(key, "lr_scheduler") == 0)
        t->cat->skipped[MGR_SKIP_OPTIMIZER]++;
    else if (strcmp(key, "rng_state") == 0)
        t->cat->skipped[MGR_SKIP_RNG]++;
    else if (is_scalar(value))
        return add_attr(t, key, value);
    else
        t->cat->skipped[MGR_SKIP_OTHER]++;
    return MGR_OK;
}

static int check_names(torch_file *t)
{
    const size_t n = t->cat->n_stored - t->first;
    const char **names = NULL;
    MGR_TRY(mgr_alloc(&names, n, sizeof *names, t->err));
    for (size_t i = 0; i < n; i++)
        names[i] = t->cat->stored[t->first + i].name;
    const int rc = check_unique(t, names, n, "tensor");
    mgr_free(names);
    return rc;
}

static int read_top(torch_file *t, const mgr_node *root, bool need_model)
{
    bool model = false;
    char kind[NAME_SHOWN + 40];
    if (!mgr_node_is_dict(root))
        return mgr_fail(t->err, MGR_ERR_FORMAT, "'%s' holds a '%s', expected a dict with 'model'",
                        t->reader->name, mgr_node_describe(root, kind, sizeof kind));
    MGR_TRY(check_keys(t, root, "entry"));
    for (size_t i = 0; i < mgr_node_n_pairs(root); i++) {
        const char *const key = mgr_node_text(mgr_node_key(root, i));
        if (!key) {
            t->cat->skipped[MGR_SKIP_OTHER]++;
            continue;
        }
        model = model || is_model_key(key);
        MGR_TRY(read_entry(t, key, mgr_node_value(root, i)));
    }
    if (!model && need_model)
        return mgr_fail(t->err, MGR_ERR_FORMAT, "no 'model' entry in '%s'", t->reader->name);
    return check_names(t);
}

/* A state dict by itself: no dicts in it, and no key but a tensor's name. */
static int read_flat(torch_file *t)
{
    const mgr_node *const root = t->pickle.root;
    char kind[NAME_SHOWN + 40];
    if (!mgr_node_is_dict(root))
        return mgr_fail(t->err, MGR_ERR_FORMAT, "'%s' holds a '%s', expected a state dict",
                        t->reader->name, mgr_node_describe(root, kind, sizeof kind));
    for (size_t i = 0; i < mgr_node_n_pairs(root); i++) {
        const mgr_node *const key = mgr_node_key(root, i);
        const char *const text = mgr_node_text(key);
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, "", t->err));
        if (!text || !*text)
            return bad_key(t, key, "is no text");
        if (key->u.s.len > MAX_NAME)
            return bad_key(t, key, "is too long");
        MGR_TRY(mgr_buf_add(&t->name, text, key->u.s.len, t->err));
        MGR_TRY(read_leaf(t, mgr_node_value(root, i)));
    }
    return check_names(t);
}

/* What is asked of a file. */
typedef enum read_mode { READ_MODEL, READ_COMMON, READ_TENSOR, READ_FLAT } read_mode;

static int read_root(torch_file *t, read_mode mode, const char *name)
{
    const mgr_node *root = t->pickle.root;
    mgr_node *const *items;
    size_t n;
    if (mode == READ_TENSOR) {
        MGR_TRY(mgr_buf_text(&t->name, name, t->err));
        return read_leaf(t, root);
    }
    if (mode == READ_FLAT)
        return read_flat(t);
    if (mode == READ_COMMON && root->kind == MGR_NODE_LIST && mgr_node_elements(root, &items, &n) &&
        n == 1)
        root = items[0];
    return read_top(t, root, mode == READ_MODEL);
}

static int read_archive(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, read_mode mode,
                        const char *name, mgr_err *err)
{
    torch_file t = {.cat = cat, .file = file, .reader = reader, .first = cat->n_stored, .err = err};
    int rc = open_archive(&t);
    if (!rc)
        rc = read_root(&t, mode, name);
    mgr_free(t.storages);
    mgr_buf_clear(&t.name);
    mgr_pickle_clear(&t.pickle);
    mgr_zip_clear(&t.zip);
    return rc;
}

int mgr_torch_file_read(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    return read_archive(cat, file, reader, READ_MODEL, NULL, err);
}

int mgr_torch_file_read_common(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               mgr_err *err)
{
    return read_archive(cat, file, reader, READ_COMMON, NULL, err);
}

int mgr_torch_file_read_tensor(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               const char *name, mgr_err *err)
{
    return read_archive(cat, file, reader, READ_TENSOR, name, err);
}

int mgr_torch_file_read_flat(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             mgr_err *err)
{
    return read_archive(cat, file, reader, READ_FLAT, NULL, err);
}
