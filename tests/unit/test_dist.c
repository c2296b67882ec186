/* What target `megatron-dist` writes: `.metadata` and archives are read back by our readers, chunks
 * declared are chunks found, and files are filled without a hole, beyond 4 GiB, too. */
#include <libdeflate.h>
#include <stdlib.h>

#include "core/mem.h"
#include "fmt/dcp_write.h"
#include "fmt/pickle_write.h"
#include "fmt/torch_file.h"
#include "fmt/torch_write.h"
#include "fmt/zip.h"
#include "form/container.h"
#include "model/megatron_dist.h"
#include "support/check.h"

#define GIB (UINT64_C(1) << 30)

static mgr_err err;

/* ---- .metadata ---- */

static mgr_skip take_all(const char *name, bool tensor)
{
    (void)name;
    (void)tensor;
    return MGR_SKIP_COUNT;
}

static void test_metadata(void)
{
    mgr_dcp_entry entries[] = {
        {.name = "a",
         .tensor = true,
         .dtype = MGR_DTYPE_BF16,
         .ndim = 2,
         .shape = {6, 4},
         .first_chunk = 0,
         .n_chunks = 2},
        {.name = "b",
         .tensor = true,
         .dtype = MGR_DTYPE_F32,
         .ndim = 1,
         .shape = {1000000},
         .first_chunk = 2,
         .n_chunks = 1},
        {.name = "o/shard_0_2"},
        {.name = "o/shard_1_2"},
    };
    mgr_dcp_chunk chunks[] = {
        {.size = {4, 4}}, {.offset = {4}, .size = {2, 4}}, {.size = {1000000}}};
    mgr_dcp_item items[] = {{.entry = 0, .path = 0, .chunk = 0, .offset = 100, .length = 300},
                            {.entry = 0, .path = 1, .chunk = 1, .offset = 5 * GIB, .length = 200},
                            {.entry = 1, .path = 1, .chunk = 2, .offset = 0, .length = 4000400},
                            {.entry = 2, .path = 0, .chunk = SIZE_MAX, .length = 90},
                            {.entry = 3, .path = 0, .chunk = SIZE_MAX, .length = 90}};
    const char *paths[] = {"__0_0.distcp", "__1_0.distcp"};
    const mgr_dcp written = {.entries = entries,
                             .n_entries = 4,
                             .chunks = chunks,
                             .n_chunks = 3,
                             .items = items,
                             .n_items = 5,
                             .paths = paths,
                             .n_paths = 2};
    mgr_dcp read;
    mgr_buf bytes = {0};
    mgr_reader reader;
    CHECK_INT(mgr_dcp_write(&written, &bytes, &err), MGR_OK);
    mgr_reader_memory(&reader, ".metadata", bytes.data, bytes.len);
    CHECK_INT(mgr_dcp_read(&read, &reader, take_all, &err), MGR_OK);
    CHECK_INT(read.n_entries, 4);
    CHECK_INT(read.n_items, 5);
    for (size_t i = 0; i < 4 && i < read.n_entries; i++) {
        const mgr_dcp_entry *const e = &read.entries[i];
        CHECK_TEXT(e->name, entries[i].name);
        CHECK_INT(e->tensor, entries[i].tensor);
        CHECK_INT(e->n_chunks, entries[i].n_chunks);
        CHECK(!e->tensor || e->dtype == entries[i].dtype);
        CHECK(memcmp(e->shape, entries[i].shape, sizeof e->shape) == 0);
    }
    CHECK_TEXT(read.paths[1], paths[1]);
    CHECK_INT(read.items[0].length, 90); /* by file, then place: both objects, then the chunk */
    CHECK_INT(read.items[2].offset, 100);
    CHECK_INT(read.items[4].offset, 5 * GIB);
    CHECK_INT(read.chunks[read.items[4].chunk].offset[0], 4);
    mgr_dcp_clear(&read);
    mgr_buf_clear(&bytes);
}

static void test_metadata_without_memory(void)
{
    mgr_dcp_entry entry = {.name = "a", .tensor = true, .dtype = MGR_DTYPE_BF16, .n_chunks = 0};
    const mgr_dcp written = {.entries = &entry, .n_entries = 1};
    int rc = MGR_ERR_NOMEM;
    for (uint64_t k = 1; rc == MGR_ERR_NOMEM && k < 100; k++) {
        mgr_buf bytes = {0};
        err = (mgr_err)MGR_ERR_INIT;
        mgr_alloc_fail_at(k);
        rc = mgr_dcp_write(&written, &bytes, &err);
        mgr_buf_clear(&bytes);
    }
    mgr_alloc_fail_at(0);
    CHECK_INT(rc, MGR_OK);
    entry.dtype = MGR_DTYPE_OTHER;
    mgr_buf bytes = {0};
    CHECK_INT(mgr_dcp_write(&written, &bytes, &err), MGR_ERR_INTERNAL);
    mgr_buf_clear(&bytes);
}

/* ---- archives ---- */

static void test_tensor(void)
{
    const uint64_t shape[] = {2, 3, 5};
    const mgr_torch_tensor tensor = {MGR_DTYPE_BF16, 3, shape};
    mgr_torch_item item;
    mgr_buf head = {0}, tail = {0};
    unsigned char elements[60];
    for (unsigned i = 0; i < sizeof elements; i++)
        elements[i] = (unsigned char)(i * 7 + 1);
    const uint32_t crc = libdeflate_crc32(0, elements, sizeof elements);
    CHECK_INT(mgr_torch_item_layout(&tensor, &item, &err), MGR_OK);
    CHECK_INT(mgr_torch_item_bytes(&tensor, crc, &head, &tail, &err), MGR_OK);
    CHECK_INT(head.len, item.data);
    CHECK_INT(item.tail, item.data + sizeof elements);
    CHECK_INT(tail.len, item.total - item.tail);
    CHECK_INT(item.data % 64, 0);
    CHECK_INT(mgr_buf_add(&head, elements, sizeof elements, &err), MGR_OK);
    CHECK_INT(mgr_buf_add(&head, tail.data, tail.len, &err), MGR_OK);

    mgr_reader reader;
    mgr_catalogue cat = {0};
    uint32_t file;
    mgr_reader_memory(&reader, "f", head.data, head.len);
    CHECK_INT(mgr_catalogue_add_file(&cat, "f", head.len, &file, &err), MGR_OK);
    CHECK_INT(mgr_torch_file_read_tensor(&cat, file, &reader, "x", &err), MGR_OK);
    CHECK_INT(cat.n_stored, 1);
    CHECK_INT(cat.stored[0].offset, item.data);
    CHECK_INT(cat.stored[0].dtype, MGR_DTYPE_BF16);
    CHECK_INT(cat.stored[0].ndim, 3);
    CHECK(memcmp(cat.stored[0].shape, shape, sizeof shape) == 0);
    CHECK_INT(cat.records[0].crc32, crc);
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&head);
    mgr_buf_clear(&tail);
}

static void test_value(void)
{
    mgr_buf pickle = {0}, archive = {0};
    mgr_reader reader;
    mgr_zip zip;
    CHECK_INT(mgr_pickle_begin(&pickle, &err), MGR_OK);
    CHECK_INT(mgr_pickle_none(&pickle, &err), MGR_OK);
    CHECK_INT(mgr_pickle_end(&pickle, &err), MGR_OK);
    CHECK_INT(mgr_torch_archive("common", &pickle, &archive, &err), MGR_OK);
    mgr_reader_memory(&reader, "f", archive.data, archive.len);
    CHECK_INT(mgr_zip_open(&zip, &reader, &err), MGR_OK);
    CHECK_TEXT(zip.folder, "common");
    CHECK_INT(zip.n_members, 3);
    unsigned char *bytes = NULL;
    CHECK_INT(mgr_zip_read(&zip, &reader, mgr_zip_find(&zip, "data.pkl"), 100, &bytes, &err),
              MGR_OK);
    CHECK(bytes && memcmp(bytes, pickle.data, pickle.len) == 0);
    mgr_free(bytes);
    mgr_zip_clear(&zip);
    mgr_buf_clear(&pickle);
    mgr_buf_clear(&archive);
}

/* ---- chunks ---- */

/* Every feature by a bit, and layers of two kinds. */
static mgr_model model_of(unsigned bits)
{
    mgr_model m = {.layers = 4,
                   .hidden = 12,
                   .ffn = 20,
                   .heads = 4,
                   .kv_groups = 2,
                   .head_dim = 3,
                   .vocab = 50,
                   .max_positions = 7,
                   .dtype = MGR_DTYPE_BF16};
    m.norm = bits & 1 ? MGR_NORM_LAYER : MGR_NORM_RMS;
    m.activation = bits & 2 ? MGR_ACTIVATION_GELU : MGR_ACTIVATION_SWIGLU;
    m.positions = bits & 4 ? MGR_POSITIONS_LEARNED : MGR_POSITIONS_ROPE;
    m.bias_qkv = m.bias_o = m.bias_mlp = bits & 8;
    m.qk_norm = bits & 16;
    m.tied = bits & 32;
    m.experts = bits & 64 ? 4 : 0;
    m.expert_ffn = bits & 64 ? 6 : 0;
    m.bias_router = (bits & 64) && (bits & 8);
    if ((bits & 64) && (bits & 128))
        mgr_model_set_dense(&m, 1);
    return m;
}

/* What is declared is found again, in the same boxes, and what is stored is those and the padding.
 */
static void check_declared(unsigned bits, mgr_norm_names names, uint32_t ranks, uint64_t shard)
{
    const mgr_model m = model_of(bits);
    const mgr_megatron_dist_target target = {.folder = "release",
                                             .padded_vocab = 64,
                                             .vocab_rows = 24,
                                             .max_shard_size = shard,
                                             .expert_parallel = m.experts ? ranks : 1,
                                             .stacked = mgr_megatron_dist_can_stack(&m),
                                             .names = names};
    const mgr_megatron_dist dist = {.padded_vocab = 64};
    mgr_tensors tensors;
    mgr_catalogue cat = {0};
    mgr_layout declared, found;
    uint64_t stored = 0;
    CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&declared, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_megatron_dist_declare(&declared, &target, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&declared, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&found, &tensors, &cat, false, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_megatron_dist_layout(&found, &dist, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&found, &err), MGR_OK);
    CHECK_INT(found.n_boxes, declared.n_boxes);
    CHECK(memcmp(found.boxes, declared.boxes, found.n_boxes * sizeof *found.boxes) == 0);
    for (size_t i = 0; i < cat.n_stored; i++) {
        const mgr_stored *const s = &cat.stored[i];
        stored += s->shape[0] * s->stride[0];
        /* experts of a rank are in files of their own */
        const mgr_tensor *owner = NULL;
        for (size_t k = 0; k < declared.n_boxes && !owner; k++)
            if (declared.boxes[k].stored == i)
                owner = &tensors.list[declared.boxes[k].tensor];
        const bool apart = owner && owner->expert != MGR_NONE && target.expert_parallel > 1;
        CHECK_INT(declared.file_owner[s->file],
                  apart ? (int)(owner->expert / (4 / target.expert_parallel)) : -1);
    }
    CHECK_INT(stored, mgr_tensors_elements(&tensors) + (m.tied ? 1u : 2u) * 14 * 12);
    CHECK(declared.n_objects > 0);
    mgr_layout_clear(&found);
    mgr_layout_clear(&declared);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

static bool has_object(const mgr_layout *l, const char *name)
{
    for (size_t i = 0; i < l->n_objects; i++)
        if (strcmp(l->objects[i].name, name) == 0)
            return true;
    return false;
}

static bool has_chunk(const mgr_catalogue *cat, const char *name)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (strcmp(cat->stored[i].name, name) == 0)
            return true;
    return false;
}

/* The names that Megatron gives, spelt out. */
static void check_names(bool stacked)
{
    static const char *const of[2][6] = {
        {"decoder.layers.2.mlp.experts.experts.linear_fc1.weight@3,6,0",
         "decoder.layers.1.mlp.linear_fc1.weight@20,0",
         "decoder.layers.2.pre_mlp_layernorm.weight@0",
         "decoder.layers.2.mlp.experts.experts.linear_fc2._extra_state/shard_3_4",
         "decoder.layers.1.mlp.linear_fc1._extra_state/shard_0_1",
         "decoder.final_layernorm._extra_state/shard_0_1"},
        {"decoder.layers.mlp.experts.experts.linear_fc1.weight@2,3,6,0",
         "decoder.layers.mlp.router.weight@1,0,0", "decoder.layers.pre_mlp_layernorm.weight@2,0",
         "decoder.layers.mlp.experts.experts.linear_fc2._extra_state/shard_2.3_4.4",
         "decoder.layers.self_attention.linear_qkv._extra_state/shard_1_4",
         "decoder.final_layernorm._extra_state/shard_0_1"}};
    const mgr_model m = model_of(stacked ? 64 : 64 + 128);
    const mgr_megatron_dist_target target = {.folder = "release",
                                             .padded_vocab = 64,
                                             .vocab_rows = 24,
                                             .max_shard_size = 1 << 20,
                                             .expert_parallel = 1,
                                             .stacked = stacked,
                                             .names = MGR_NAMES_TE};
    mgr_tensors tensors;
    mgr_catalogue cat = {0};
    mgr_layout l;
    CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_megatron_dist_declare(&l, &target, &err), MGR_OK);
    for (int i = 0; i < 3; i++)
        CHECK(has_chunk(&cat, of[stacked][i]));
    for (int i = 3; i < 6; i++)
        CHECK(has_object(&l, of[stacked][i]));
    CHECK(has_chunk(&cat, "embedding.word_embeddings.weight@48,0"));
    CHECK_TEXT(cat.files[0].path, "release/__0_0.distcp");
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

static void test_chunks(void)
{
    for (unsigned bits = 0; bits < 256; bits++) {
        check_declared(bits, MGR_NAMES_TE, 1, 1 << 20);
        check_declared(bits, MGR_NAMES_LOCAL, 2, 2000);
    }
    check_names(false);
    check_names(true);
}

/* ---- files ---- */

typedef struct range {
    uint64_t from, to;
} range;

typedef struct ranges {
    range list[64];
    size_t n;
} ranges;

static void note(ranges *all, uint64_t from, uint64_t bytes)
{
    all->list[all->n++] = (range){from, from + bytes};
}

static int note_blob(void *context, const mgr_blob *blob, mgr_err *unused)
{
    (void)unused;
    note(context, blob->offset, blob->len);
    return MGR_OK;
}

static int by_place(const void *x, const void *y)
{
    const range *const a = x, *const b = y;
    return a->from < b->from ? -1 : a->from > b->from;
}

/* Blobs and tensors tile the file; items lie where the container says. */
static void check_file(const mgr_layout *l, const uint32_t *crc, uint32_t file)
{
    ranges all = {.n = 0};
    const mgr_blob_sink sink = {note_blob, &all};
    uint64_t at = 0;
    CHECK_INT(mgr_container_dist.finish(l, file, NULL, crc, &sink, &err), MGR_OK);
    for (size_t i = 0; i < l->cat->n_stored; i++) {
        const mgr_stored *const s = &l->cat->stored[i];
        uint64_t offset, length;
        if (s->file != file)
            continue;
        note(&all, s->offset, s->shape[0] * s->stride[0] * mgr_dtype_size(s->dtype));
        CHECK_INT(mgr_container_dist_item(s, &offset, &length, &err), MGR_OK);
        CHECK(offset < s->offset && offset + length <= l->cat->files[file].bytes);
    }
    qsort(all.list, all.n, sizeof *all.list, by_place);
    for (size_t i = 0; i < all.n; at = all.list[i++].to)
        CHECK_INT(all.list[i].from, at);
    CHECK_INT(l->cat->files[file].bytes, at);
}

/* Three tensors of 3 GiB and one of 5 in one file: nothing of it exists, the numbers are enough. */
static void test_large_files(void)
{
    static const uint64_t shapes[][3] = {
        {1, 3 << 15, 1 << 14}, {1, 5 << 15, 1 << 14}, {1, 3 << 15, 1 << 14}, {1, 7, 5}};
    const uint32_t crc[5] = {0};
    mgr_tensors none = {.n = 0};
    mgr_catalogue cat = {0};
    mgr_layout l;
    uint32_t file[2], stored;
    CHECK_INT(mgr_layout_init(&l, &none, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    for (int f = 0; f < 2; f++)
        CHECK_INT(mgr_catalogue_add_file(&cat, f ? "b" : "a", 0, &file[f], &err), MGR_OK);
    for (uint32_t i = 0; i < 5; i++)
        CHECK_INT(mgr_layout_tensor(&l, file[i == 4], "x", 3, shapes[i % 4], &stored, &err),
                  MGR_OK);
    CHECK_INT(mgr_layout_object(&l, file[0], "o/shard_0_1", &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&l, &err), MGR_OK);
    for (int f = 0; f < 2; f++) {
        CHECK_INT(mgr_container_dist.place(&l, file[f], NULL, &err), MGR_OK);
        check_file(&l, crc, file[f]);
    }
    CHECK(cat.stored[2].offset > 8 * GIB && cat.stored[3].offset > 11 * GIB);
    CHECK(cat.files[0].bytes > 11 * GIB && cat.files[0].bytes < 11 * GIB + 10000);
    CHECK_INT(cat.stored[0].offset % 2, 0);
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
}

int main(void)
{
    test_metadata();
    test_metadata_without_memory();
    test_tensor();
    test_value();
    test_chunks();
    test_large_files();
    return CHECK_DONE();
}
