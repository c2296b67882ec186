/*
 * Source `hdf5`: the directory that target_hdf5.c writes, dense or with experts. Data sets in one
 * piece are read like any other bytes; compressed ones by the library, each rank by itself.
 */
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "core/mem.h"
#include "fmt/h5_read.h"
#include "fmt/json.h"
#include "form/format_keys.h"
#include "form/hdf5_model.h"
#include "form/huggingface_compose.h"
#include "form/source.h"
#include "io/file.h"
#include "model/flat.h"
#include "model/mtp.h"

#define MAX_JSON ((uint64_t)1 << 20)

extern const mgr_source_format mgr_source_hdf5;

static int find_index(const char *path, mgr_buf *out, mgr_err *err)
{
    return mgr_buf_fmt(out, err, "%s/" MGR_HDF5_INDEX, path);
}

static bool probe_hdf5_source(const char *path)
{
    mgr_buf index = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const bool found = find_index(path, &index, &ignored) == MGR_OK &&
                       mgr_path_exists(index.data) && !mgr_is_dir(index.data);
    mgr_buf_clear(&index);
    return found;
}

static bool is_weights(const char *name)
{
    return strcmp(name, MGR_HDF5_SHARED) == 0 ||
           (mgr_has_prefix(name, MGR_HDF5_EXPERTS) && mgr_has_suffix(name, ".h5"));
}

/* The index, the shared weights, the experts in the order of their ranks. */
static int list_files(const char *root, mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    const char **names;
    size_t n;
    MGR_TRY(mgr_list_dir(root, arena, &names, &n, err));
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, (n + 2) * sizeof *files->paths, err));
    MGR_TRY(mgr_arena_fmt(arena, &files->paths[0], err, "%s/" MGR_HDF5_INDEX, root));
    MGR_TRY(mgr_arena_fmt(arena, &files->paths[1], err, "%s/" MGR_HDF5_SHARED, root));
    files->n = 2;
    for (size_t i = 0; i < n; i++)
        if (is_weights(names[i]) && strcmp(names[i], MGR_HDF5_SHARED) != 0)
            MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s", root, names[i]));
    return MGR_OK;
}

static int find_hdf5_source(const mgr_config *config, mgr_arena *arena, mgr_source_files *files,
                            mgr_err *err)
{
    const char *const root = config->source.path;
    MGR_TRY(mgr_arena_strndup(arena, &files->directory, root, strlen(root), err));
    MGR_TRY(list_files(root, arena, files, err));
    for (size_t i = 0; i < 2; i++)
        if (!mgr_path_exists(files->paths[i]))
            return mgr_fail(err, MGR_ERR_NOT_FOUND, "no file '%s'", files->paths[i]);
    return MGR_OK;
}

/* ---- headers ---- */

static int add_member(mgr_catalogue *cat, uint32_t file, const char *key, const json_t *value,
                      mgr_err *err)
{
    mgr_attr attr = {.key = key, .file = file, .kind = MGR_ATTR_OTHER, .text = ""};
    if (json_is_integer(value)) {
        attr.kind = MGR_ATTR_INT;
        attr.i = json_integer_value(value);
    } else if (json_is_real(value)) {
        attr.kind = MGR_ATTR_REAL;
        attr.r = json_real_value(value);
    } else if (json_is_boolean(value)) {
        attr.kind = MGR_ATTR_BOOL;
        attr.i = json_is_true(value);
    } else if (json_is_string(value)) {
        attr.kind = MGR_ATTR_TEXT;
        attr.text = json_string_value(value);
    }
    return mgr_catalogue_add_attr(cat, &attr, err);
}

/* Hugging Face's config.json, which an output's may carry on. */
static int read_config(const mgr_reader *in, mgr_catalogue *cat, uint32_t file, mgr_err *err)
{
    mgr_err why = MGR_ERR_INIT;
    mgr_buf text = {0};
    int rc = mgr_h5_read_text(in, "mgr/config.json", MAX_JSON, &text, &why);
    if (rc == MGR_OK && text.len) {
        const mgr_attr attr = {
            .key = MGR_HF_CONFIG_TEXT, .file = file, .kind = MGR_ATTR_TEXT, .text = text.data};
        rc = mgr_catalogue_add_attr(cat, &attr, err);
    } else if (rc == MGR_ERR_NOT_FOUND) {
        rc = MGR_OK;
    } else if (rc != MGR_OK) {
        *err = why;
    }
    mgr_buf_clear(&text);
    return rc;
}

static int read_model(const mgr_reader *in, mgr_catalogue *cat, uint32_t file, mgr_err *err)
{
    const char *const name = in->name;
    mgr_buf text = {0};
    json_t *root = NULL, *value;
    const char *key;
    int rc = mgr_h5_read_text(in, MGR_HDF5_MODEL, MAX_JSON, &text, err);
    if (rc == MGR_OK)
        rc = mgr_json_parse(&root, name, text.data ? text.data : "", text.len, err);
    if (rc == MGR_OK && !json_is_object(root))
        rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' describes no model", name);
    if (rc == MGR_OK)
        json_object_foreach(root, key, value)
        {
            rc = rc == MGR_OK ? add_member(cat, file, key, value, err) : rc;
        }
    json_decref(root);
    mgr_buf_clear(&text);
    return rc == MGR_OK ? read_config(in, cat, file, err) : rc;
}

static int read_hdf5_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, void **held,
                          mgr_err *err)
{
    (void)held;
    return mgr_has_suffix(reader->name, "/" MGR_HDF5_INDEX)
               ? read_model(reader, cat, file, err)
               : mgr_h5_catalogue(reader, cat, file, err);
}

/* ---- the model ---- */

typedef struct state {
    mgr_flat flat;
    bool moe, compressed;
} state;

/* What the configuration says of the model, it must say as the checkpoint does. */
static int check_config(const mgr_config *c, const mgr_model *m, mgr_err *err)
{
    const struct {
        const char *key;
        uint64_t said, found;
    } facts[] = {
        {"model.num_layers", c->model.num_layers, m->layers},
        {"model.hidden_size", c->model.hidden_size, m->hidden},
        {"model.ffn_hidden_size", c->model.ffn_hidden_size, m->ffn},
        {"model.num_attention_heads", c->model.num_attention_heads, m->heads},
        {"model.num_query_groups", c->model.num_query_groups, m->kv_groups},
        {"model.kv_channels", c->model.kv_channels, m->head_dim},
        {"model.vocab_size", c->model.vocab_size, m->vocab},
    };
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++)
        if (facts[i].said && facts[i].said != facts[i].found)
            return mgr_config_fail(
                c, facts[i].key, err, "'%s' is %llu, but the checkpoint says %llu", facts[i].key,
                (unsigned long long)facts[i].said, (unsigned long long)facts[i].found);
    return MGR_OK;
}

/* What the configuration knows better: it is not in the tensors. */
static void take_config(const mgr_config *c, mgr_model *m)
{
    if (c->model.max_position_embeddings)
        m->max_positions = c->model.max_position_embeddings;
    if (c->model.norm_epsilon > 0)
        m->norm_epsilon = c->model.norm_epsilon;
    if (c->model.rotary_base > 0)
        m->rotary_base = c->model.rotary_base;
    if (c->model.bos_token_id >= 0)
        m->bos_token_id = c->model.bos_token_id;
    if (c->model.eos_token_id >= 0)
        m->eos_token_id = c->model.eos_token_id;
}

/* Only a model that is known whole says that it has such layers. */
static int check_mtp(const mgr_catalogue *cat, const mgr_config *config, mgr_err *err)
{
    if (!mgr_mtp_is_dropped(config) || mgr_catalogue_attr(cat, 0, MGR_MTP_ATTR))
        return MGR_OK;
    mgr_config_fail(config, "source.mtp", err,
                    "'source.mtp' is 'drop', but '%s' does not tell of layers for multi-token "
                    "prediction",
                    cat->files[0].path);
    return mgr_hint(err, "leave it out; it is for the model that this one was made of");
}

static int describe_hdf5_source(const mgr_catalogue *cat, const mgr_config *config, void **out,
                                mgr_model *model, mgr_err *err)
{
    state *s;
    MGR_TRY(check_mtp(cat, config, err));
    MGR_TRY(mgr_hdf5_model_read(cat, 0, model, err));
    MGR_TRY(check_config(config, model, err));
    take_config(config, model);
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    s->flat = (mgr_flat){1, (uint32_t)cat->n_files - 1};
    s->moe = model->experts > 0;
    for (size_t i = 0; i < cat->n_stored; i++)
        s->compressed = s->compressed || cat->stored[i].offset >= MGR_VIRTUAL_OFFSET;
    *out = s;
    return MGR_OK;
}

static int find_opaque(const void *of, const mgr_catalogue *cat, mgr_tensors *tensors, mgr_err *err)
{
    const state *const s = of;
    return mgr_flat_opaque(cat, &s->flat, tensors, err);
}

static int layout_hdf5_source(const void *opaque, mgr_layout *into, mgr_err *err)
{
    const state *const s = opaque;
    return mgr_flat_layout(into, &s->flat, err);
}

static int summary_hdf5_source(const void *opaque, mgr_buf *out, mgr_err *err)
{
    const state *const s = opaque;
    MGR_TRY(mgr_buf_fmt(out, err, "%s weights", s->compressed ? "compressed" : "plain"));
    return s->moe ? mgr_buf_fmt(out, err, ", experts in %u files", s->flat.n_files - 1) : MGR_OK;
}

static void release_hdf5_source(void *opaque)
{
    mgr_free(opaque);
}

/* ---- compressed tensors ---- */

typedef struct fetcher {
    mgr_reader in;
    mgr_h5_index index; /* of the file that is open */
    mgr_h5_image *image;
    uint32_t file;
    size_t stored; /* the tensor that `image` is of, which was read last */
} fetcher;

static void close_file(fetcher *f)
{
    mgr_h5_image_close(f->image);
    f->image = NULL;
    mgr_h5_index_clear(&f->index);
    mgr_reader_close(&f->in);
}

static int open_for(fetcher *f, const mgr_catalogue *cat, uint32_t file, mgr_err *err)
{
    if (f->in.fd >= 0 && f->file == file)
        return MGR_OK;
    close_file(f);
    f->file = file;
    MGR_TRY(mgr_reader_open(&f->in, cat->files[file].path, err));
    return mgr_h5_index_make(&f->index, &f->in, err);
}

/* Its type and shape were looked at by the rank that listed the file. */
static int take_tensor(fetcher *f, const mgr_stored *s, size_t i, mgr_err *err)
{
    mgr_h5_set set;
    if (f->image && f->stored == i)
        return MGR_OK;
    mgr_h5_image_close(f->image);
    f->image = NULL;
    f->stored = i;
    MGR_TRY(mgr_h5_index_set(&f->index, s->name, &set, err));
    if (set.bytes != mgr_stored_bytes(s))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has changed while it was read", f->in.name);
    return mgr_h5_image_open(&f->image, &f->in, &set, err);
}

/* The tensor of `file` that holds byte `offset`; the search begins at the last one. */
static int tensor_at(fetcher *f, const mgr_catalogue *cat, uint32_t file, uint64_t offset,
                     mgr_err *err)
{
    for (size_t k = 0; k < cat->n_stored; k++) {
        const size_t i = (f->stored + k) % cat->n_stored;
        const mgr_stored *const s = &cat->stored[i];
        if (s->file == file && s->offset <= offset && offset - s->offset < mgr_stored_bytes(s))
            return take_tensor(f, s, i, err);
    }
    return mgr_fail(err, MGR_ERR_INTERNAL, "nothing at byte %llu of '%s'",
                    (unsigned long long)offset, cat->files[file].path);
}

static int fetch(void **opaque, const mgr_catalogue *cat, uint32_t file, uint64_t offset, void *out,
                 size_t len, mgr_err *err)
{
    char *to = out;
    fetcher *f = *opaque;
    if (!f) {
        MGR_TRY(mgr_alloc(&f, 1, sizeof *f, err));
        f->in.fd = -1;
        *opaque = f;
    }
    MGR_TRY(open_for(f, cat, file, err));
    while (len > 0) {
        MGR_TRY(tensor_at(f, cat, file, offset, err));
        const mgr_stored *const s = &cat->stored[f->stored];
        const uint64_t left = mgr_stored_bytes(s) - (offset - s->offset);
        const size_t n = len < left ? len : (size_t)left;
        MGR_TRY(mgr_h5_image_read(f->image, offset - s->offset, to, n, err));
        to += n;
        offset += n;
        len -= n;
    }
    return MGR_OK;
}

static void fetched(void *opaque)
{
    fetcher *const f = opaque;
    if (f)
        close_file(f);
    mgr_free(f);
}

static const mgr_key keys[] = {MGR_ROW_MTP};

const mgr_source_format mgr_source_hdf5 = {
    .name = "hdf5",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "hdf5", keys),
    .probe = probe_hdf5_source,
    .find = find_hdf5_source,
    .read = read_hdf5_file,
    .describe = describe_hdf5_source,
    .opaque = find_opaque,
    .layout = layout_hdf5_source,
    .summary = summary_hdf5_source,
    .release = release_hdf5_source,
    .fetch = fetch,
    .fetched = fetched,
};
