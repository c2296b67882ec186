#include "fmt/torch_archive.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/torch_kind.h"

/*
 * A torch.save file is a zip archive (src/fmt/README.md):
 *
 *   <folder>/data.pkl    pickle; tensors refer to storages by persistent ids
 *   <folder>/data/<key>  the bytes of one storage
 *   <folder>/version     "3\n"
 *   <folder>/byteorder   "little"
 */
#define PICKLE_LIMIT (UINT64_C(512) << 20)
#define SMALL_LIMIT 64         /* version, byteorder */
#define MAX_KEY 200            /* bytes of a storage's key */
#define MAX_WRAPPERS 8         /* parameter around tensor around ... */
#define MAX_TENSORS (1u << 20) /* of one file */
#define NAME_SHOWN 200

typedef struct storage {
    const mgr_zip_member *member;
    uint32_t record; /* MGR_NONE until a tensor uses it, and in archives without CRCs */
    bool used;
    mgr_dtype dtype; /* of its storage class, MGR_DTYPE_NONE for UntypedStorage */
} storage;

/* ---- the archive ---- */

/* A small text member without its newline, into `out`; false if there is none. */
static int read_small(mgr_torch_archive *t, const char *name, char *out, size_t size, bool *found)
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
static int check_version(mgr_torch_archive *t)
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

static int check_byteorder(mgr_torch_archive *t)
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
    const mgr_torch_storage *const sa = a;
    const mgr_torch_storage *const sb = b;
    return strcmp(sa->member->name, sb->member->name);
}

/* An index of the members. An archive in which every CRC is zero has none (torch's compute_crc32 =
 * False, see zip.c); its members get no records. */
static int index_members(mgr_torch_archive *t)
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

static int open_archive(mgr_torch_archive *t)
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

static int bad_tensor(mgr_torch_archive *t, mgr_code code, const mgr_node *node, const char *what)
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

static int fp8_tensor(mgr_torch_archive *t, const mgr_node *node)
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
static int unwrap_type(mgr_torch_archive *t, const mgr_node *node, rebuild *r)
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
static int unwrap(mgr_torch_archive *t, const mgr_node *node, rebuild *r)
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

static mgr_torch_storage *find_storage(mgr_torch_archive *t, const char *key)
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

static int read_persid(mgr_torch_archive *t, const mgr_node *tensor, const mgr_node *node,
                       persid *out)
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
static int use_storage(mgr_torch_archive *t, const mgr_node *tensor, const persid *id,
                       mgr_torch_storage **out)
{
    char what[2 * NAME_SHOWN];
    mgr_torch_storage *const s = find_storage(t, id->key);
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

static int read_dims(mgr_torch_archive *t, const mgr_node *tensor, const mgr_node *node,
                     uint32_t *ndim, uint64_t *dims)
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
static int check_metadata(mgr_torch_archive *t, const mgr_node *tensor, const mgr_node *metadata)
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
static int read_dtype(mgr_torch_archive *t, const mgr_node *tensor, const rebuild *r,
                      const persid *id, mgr_dtype *out)
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
static int check_extent(mgr_torch_archive *t, const mgr_node *tensor, const mgr_stored *stored,
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
static int add_tensor(mgr_torch_archive *t, const mgr_node *node, const rebuild *r)
{
    const bool v1 = is_rebuild(r->function, "_rebuild_tensor");
    const bool v2 = is_rebuild(r->function, "_rebuild_tensor_v2");
    const size_t least = v1 ? 4 : v2 ? 6 : 7, most = v1 ? 4 : v2 ? 7 : 8;
    mgr_stored stored = {.file = t->file, .name = t->name.data};
    persid id;
    mgr_torch_storage *s;
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

int mgr_torch_archive_bad(mgr_torch_archive *t, mgr_code code, const mgr_node *node,
                          const char *expected)
{
    char shown[NAME_SHOWN], kind[NAME_SHOWN + 40];
    mgr_fail(t->err, code, "entry '%s' of '%s' at byte %" PRIu64 " is a '%s', expected %s",
             mgr_printable(t->name.data, t->name.len, shown, sizeof shown), t->reader->name,
             node->at, mgr_node_describe(node, kind, sizeof kind), expected);
    return (int)code;
}

/* Extra state belongs to Transformer Engine's FP8 recipes; it is None, io.BytesIO or bytes in a
 * tensor, and never weights. */
static int skip_extra_state(mgr_torch_archive *t, const mgr_node *node)
{
    rebuild r = {0};
    MGR_TRY(unwrap(t, node, &r));
    if (node->kind != MGR_NODE_NONE && node->kind != MGR_NODE_BYTES &&
        !mgr_node_is_call(node, "_io", "BytesIO") && !is_byte_tensor(&r))
        return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, node,
                                     "extra state (None, BytesIO, uint8 tensor)");
    t->cat->skipped[MGR_SKIP_EXTRA_STATE]++;
    return MGR_OK;
}

int mgr_torch_archive_leaf(mgr_torch_archive *t, const mgr_node *node)
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
    return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, node, "a tensor");
}

int mgr_torch_archive_open(mgr_torch_archive *t, mgr_catalogue *cat, uint32_t file,
                           const mgr_reader *reader, mgr_err *err)
{
    *t = (mgr_torch_archive){
        .cat = cat, .file = file, .reader = reader, .first = cat->n_stored, .err = err};
    return open_archive(t);
}

void mgr_torch_archive_close(mgr_torch_archive *t)
{
    mgr_free(t->storages);
    mgr_buf_clear(&t->name);
    mgr_pickle_clear(&t->pickle);
    mgr_zip_clear(&t->zip);
}
