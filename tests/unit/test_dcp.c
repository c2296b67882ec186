/* fmt/dcp.c: what `.metadata` says, and every refusal by its words. Pickles of protocol 2 are put
 * together here; what real torch writes is tested with corpus files and by the interop tests. */
#include "core/mem.h"
#include "core/str.h"
#include "fmt/dcp.h"
#include "support/check.h"

static mgr_err err;
static mgr_dcp dcp;

/* ---- pieces of pickle ---- */

static void raw(mgr_buf *b, const char *bytes, size_t len)
{
    CHECK_INT(mgr_buf_add(b, bytes, len, &err), MGR_OK);
}

#define RAW(buf, literal) raw(buf, literal, sizeof(literal) - 1)

static void text(mgr_buf *b, const char *s)
{
    const char head[5] = {'X', (char)strlen(s), 0, 0, 0};
    raw(b, head, 5);
    raw(b, s, strlen(s));
}

static void number(mgr_buf *b, uint64_t v)
{
    char bytes[10] = {(char)0x8a, 8};
    for (int i = 0; i < 8; i++)
        bytes[2 + i] = (char)(v >> (8 * i));
    raw(b, bytes, sizeof bytes);
}

static void sizes(mgr_buf *b, const uint64_t *v, uint32_t n)
{
    RAW(b, "ctorch\nSize\n(");
    for (uint32_t i = 0; i < n; i++)
        number(b, v[i]);
    RAW(b, "t\205R");
}

#define MODULE "torch.distributed.checkpoint.metadata\n"

/* class() and the start of its attributes; `end` closes them. */
static void object(mgr_buf *b, const char *global)
{
    RAW(b, "c");
    raw(b, global, strlen(global));
    RAW(b, "\n)\201}(");
}

static void end(mgr_buf *b)
{
    RAW(b, "ub");
}

/* ---- a checkpoint of one tensor "a" and one object "o" ---- */

typedef struct box {
    uint64_t at[2], size[2];
} box;

typedef struct spec {
    uint64_t size[2];
    box chunks[8];
    uint32_t n;
    uint32_t placed;         /* chunks in storage_data */
    const char *path, *type; /* "f.distcp", "bfloat16" */
    bool transformed, no_object_place;
} spec;

static void add_tensor(mgr_buf *b, const spec *s)
{
    text(b, "a");
    object(b, MODULE "TensorStorageMetadata");
    text(b, "properties");
    RAW(b, "c" MODULE "TensorProperties\n)\201(ctorch\n");
    raw(b, s->type, strlen(s->type));
    RAW(b, "\nN\211N\211tb");
    text(b, "size");
    sizes(b, s->size, 2);
    text(b, "chunks");
    RAW(b, "](");
    for (uint32_t i = 0; i < s->n; i++) {
        object(b, MODULE "ChunkStorageMetadata");
        text(b, "offsets");
        sizes(b, s->chunks[i].at, 2);
        text(b, "sizes");
        sizes(b, s->chunks[i].size, 2);
        end(b);
    }
    RAW(b, "e");
    end(b);
}

static void add_place(mgr_buf *b, const spec *s, const char *key, const uint64_t *at,
                      uint64_t begin)
{
    object(b, MODULE "MetadataIndex");
    text(b, "fqn");
    text(b, key);
    if (at) {
        text(b, "offset");
        sizes(b, at, 2);
    }
    end(b);
    object(b, "torch.distributed.checkpoint.filesystem\n_StorageInfo");
    text(b, "relative_path");
    text(b, s->path);
    text(b, "offset");
    number(b, begin);
    text(b, "length");
    number(b, 50);
    text(b, "transform_descriptors");
    if (s->transformed)
        RAW(b, "(X\1\0\0\0xt");
    else
        RAW(b, "N");
    end(b);
}

static mgr_buf build(const spec *s)
{
    mgr_buf b = {0};
    RAW(&b, "\200\2");
    object(&b, MODULE "Metadata");
    text(&b, "state_dict_metadata");
    RAW(&b, "}(");
    add_tensor(&b, s);
    text(&b, "o");
    RAW(&b, "c" MODULE "BytesStorageMetadata\n)\201");
    text(&b, "skipped");
    RAW(&b, "c" MODULE "BytesStorageMetadata\n)\201");
    RAW(&b, "u");
    text(&b, "storage_data");
    RAW(&b, "}(");
    for (uint32_t i = 0; i < s->placed; i++)
        add_place(&b, s, "a", s->chunks[i].at, 1000 - 50 * (uint64_t)i);
    if (!s->no_object_place)
        add_place(&b, s, "o", NULL, 3000);
    add_place(&b, s, "skipped", NULL, 7000);
    RAW(&b, "u");
    end(&b);
    RAW(&b, ".");
    return b;
}

static mgr_skip sort_key(const char *name, bool tensor)
{
    (void)tensor;
    return strcmp(name, "skipped") == 0 ? MGR_SKIP_RNG : MGR_SKIP_COUNT;
}

static int read_spec(const spec *s)
{
    mgr_reader reader;
    err = (mgr_err)MGR_ERR_INIT;
    mgr_buf b = build(s);
    mgr_reader_memory(&reader, "m", b.data, b.len);
    const int rc = mgr_dcp_read(&dcp, &reader, sort_key, &err);
    mgr_buf_clear(&b);
    return rc;
}

static void refused(const spec *s, mgr_code code, const char *word)
{
    CHECK_INT(read_spec(s), code);
    CHECK_HAS(err.msg, word);
    CHECK_HAS(err.msg, "'m'");
}

/* [6, 4] in three chunks that are no grid. */
static const spec good = {.size = {6, 4},
                          .chunks = {{{4, 0}, {2, 4}}, {{0, 1}, {4, 3}}, {{0, 0}, {4, 1}}},
                          .n = 3,
                          .placed = 3,
                          .path = "f.distcp",
                          .type = "bfloat16"};

static void test_good(void)
{
    size_t first, n;
    char place[64];
    CHECK_INT(read_spec(&good), MGR_OK);
    CHECK_INT(dcp.n_entries, 2);
    if (dcp.n_entries != 2)
        return;
    const mgr_dcp_entry *const a = &dcp.entries[0];
    CHECK_TEXT(a->name, "a");
    CHECK(a->tensor && !a->fp8 && !dcp.entries[1].tensor);
    CHECK_INT(a->dtype, MGR_DTYPE_BF16);
    CHECK_INT(a->ndim, 2);
    CHECK_INT(a->shape[0], 6);
    CHECK_INT(a->n_chunks, 3);
    CHECK_INT(dcp.chunks[a->first_chunk + 1].offset[1], 1); /* sorted */
    CHECK_INT(dcp.n_paths, 1);
    CHECK_INT(dcp.skipped[MGR_SKIP_RNG], 1);
    mgr_dcp_items_of(&dcp, "f.distcp", &first, &n);
    CHECK_INT(n, 4);
    CHECK_INT(dcp.items[first].offset, 900); /* by place in the file */
    CHECK_INT(dcp.items[first].chunk, 0);
    CHECK_INT(dcp.items[first + 3].entry, 1);
    CHECK(dcp.items[first + 3].chunk == SIZE_MAX);
    mgr_dcp_items_of(&dcp, "other", &first, &n);
    CHECK_INT(n, 0);
    CHECK_TEXT(mgr_dcp_place(2, a->shape, place, sizeof place), "[6, 4]");
    mgr_dcp_clear(&dcp);
}

static void test_types(void)
{
    spec s = good;
    s.type = "float8_e4m3fn";
    CHECK_INT(read_spec(&s), MGR_OK);
    CHECK(dcp.entries[0].fp8);
    CHECK_INT(dcp.entries[0].dtype, MGR_DTYPE_F8_E4M3);
    mgr_dcp_clear(&dcp);
}

static void test_chunks_without_elements(void)
{
    spec s = good;
    s.chunks[3] = s.chunks[4] = (box){{6, 0}, {0, 4}};
    s.n = 5;
    CHECK_INT(read_spec(&s), MGR_OK);
    CHECK_INT(dcp.n_chunks, 3);
    mgr_dcp_clear(&dcp);
}

static void test_tilings(void)
{
    spec s = good;
    s.chunks[0].size[1] = 3;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [4, 3] is missing");
    s = good;
    s.n = s.placed = 2;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [0, 0] is missing");
    s.n = s.placed = 0;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [0, 0] is missing");
    s = good;
    s.chunks[2].size[1] = 2;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [0, 1] overlaps another");
    s = good;
    s.chunks[3] = s.chunks[1];
    s.n = 4;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [0, 1] occurs twice");
    s = good;
    s.chunks[0].size[0] = 3;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [4, 0] reaches outside");
    s.chunks[0] = (box){{UINT64_C(1) << 62, 0}, {UINT64_C(1) << 62, 4}};
    refused(&s, MGR_ERR_FORMAT, "reaches outside");
    s = good;
    s.size[0] = s.size[1] = UINT64_C(1) << 40;
    refused(&s, MGR_ERR_FORMAT, "overflows");
}

static void test_places(void)
{
    spec s = good;
    s.placed = 2;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [0, 0] has no place in storage_data");
    s = good;
    s.chunks[3] = s.chunks[0];
    s.placed = 4;
    refused(&s, MGR_ERR_FORMAT, "the chunk at [4, 0] occurs twice in storage_data");
    s = good;
    s.no_object_place = true;
    refused(&s, MGR_ERR_FORMAT, "'o' of 'm': it has no place");
    s = good;
    s.transformed = true;
    refused(&s, MGR_ERR_UNSUPPORTED, "transform_descriptors");
    static const char *const paths[] = {"", ".", ".."};
    static const char *const folders[] = {"/x", "../x", "a/b", "x/.."};
    s = good;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        s.path = paths[i];
        refused(&s, MGR_ERR_FORMAT, "relative_path");
    }
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        s.path = folders[i];
        refused(&s, MGR_ERR_UNSUPPORTED, "relative_path");
    }
}

/* A pickle cut short anywhere is refused; so is one in which the k-th allocation fails. */
static void test_damage(void)
{
    mgr_buf b = build(&good);
    mgr_reader reader;
    for (size_t len = 0; len < b.len; len++) {
        err = (mgr_err)MGR_ERR_INIT;
        mgr_reader_memory(&reader, "m", b.data, len);
        CHECK(mgr_dcp_read(&dcp, &reader, sort_key, &err) != MGR_OK && err.msg[0]);
    }
    int rc = MGR_ERR_NOMEM;
    mgr_reader_memory(&reader, "m", b.data, b.len);
    for (uint64_t k = 1; rc == MGR_ERR_NOMEM && k < 1000; k++) {
        err = (mgr_err)MGR_ERR_INIT;
        mgr_alloc_fail_at(k);
        rc = mgr_dcp_read(&dcp, &reader, sort_key, &err);
    }
    mgr_alloc_fail_at(0);
    CHECK_INT(rc, MGR_OK);
    mgr_dcp_clear(&dcp);
    mgr_reader_memory(&reader, "m", "\200\2}.", 4);
    CHECK_INT(mgr_dcp_read(&dcp, &reader, sort_key, &err), MGR_ERR_FORMAT);
    mgr_buf_clear(&b);
}

int main(void)
{
    test_good();
    test_types();
    test_chunks_without_elements();
    test_tilings();
    test_places();
    test_damage();
    return CHECK_DONE();
}
