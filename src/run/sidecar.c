#include "run/sidecar.h"

#include <stdio.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "io/file.h"
#include "mgr/version.h"

#define MAX_SIDECAR ((uint64_t)256 << 20)

int mgr_sidecar_json(const char *directory, const char *name, const json_t *value, mgr_err *err)
{
    mgr_buf path = {0}, text = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, name);
    if (rc == MGR_OK)
        rc = mgr_json_dump(value, 2, &text, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, text.data, text.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

/* What the tokenizers of transformers read, beside config.json and generation_config.json. */
static const char *const tokenizer_files[] = {
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.txt",
    "tekken.json",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
};
#define N_TOKENIZER_FILES (sizeof tokenizer_files / sizeof tokenizer_files[0])

const char *mgr_sidecar_tokenizer_at(size_t idx)
{
    return idx < N_TOKENIZER_FILES ? tokenizer_files[idx] : NULL;
}

static bool has_file(const char *directory, const char *name)
{
    char path[MGR_CONFIG_TEXT + 64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return mgr_path_exists(path) && !mgr_is_dir(path);
}

static unsigned count_files(const char *directory)
{
    unsigned n = 0;
    for (size_t i = 0; i < N_TOKENIZER_FILES; i++)
        n += has_file(directory, tokenizer_files[i]);
    return n;
}

int mgr_sidecar_check_tokenizer(const mgr_config *config, mgr_err *err)
{
    const char *const from = config->source.tokenizer;
    if (from[0] == '\0' || count_files(from) > 0)
        return MGR_OK;
    return mgr_config_fail(config, "source.tokenizer", err, "no tokenizer file in '%s'", from);
}

static int copy_file(const char *from, const char *to, const char *name, mgr_err *err)
{
    mgr_buf path = {0}, bytes = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", from, name);
    if (rc == MGR_OK)
        rc = mgr_read_file(path.data, MAX_SIDECAR, &bytes, err);
    path.len = 0;
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&path, err, "%s/%s", to, name);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, bytes.data ? bytes.data : "", bytes.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&bytes);
    return rc;
}

static int64_t id_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (json_is_array(value))
        value = json_array_get(value, 0);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
}

/* generation_config.json and config.json of the dense model name the special tokens. They are
 * helpful, not needed: one that makes no sense is passed over. */
static int look_up_ids(const char *directory, mgr_sidecar_tokenizer *found, mgr_err *err)
{
    static const char *const names[] = {"generation_config.json", "config.json"};
    int rc = MGR_OK;
    for (size_t i = 0; i < 2 && rc == MGR_OK; i++) {
        mgr_err ignored = MGR_ERR_INIT;
        mgr_buf path = {0}, text = {0};
        json_t *object = NULL;
        if (mgr_buf_fmt(&path, &ignored, "%s/%s", directory, names[i]) == MGR_OK &&
            mgr_read_file(path.data, MAX_SIDECAR, &text, &ignored) == MGR_OK &&
            mgr_json_parse(&object, path.data, text.data, text.len, &ignored) == MGR_OK) {
            if (found->bos_token_id < 0)
                found->bos_token_id = id_of(object, "bos_token_id");
            if (found->eos_token_id < 0)
                found->eos_token_id = id_of(object, "eos_token_id");
        }
        if (ignored.code == MGR_ERR_IO || ignored.code == MGR_ERR_NOMEM) {
            *err = ignored;
            rc = ignored.code;
        }
        json_decref(object);
        mgr_buf_clear(&path);
        mgr_buf_clear(&text);
    }
    return rc;
}

int mgr_sidecar_copy_tokenizer(const mgr_job *job, const char *directory,
                               mgr_sidecar_tokenizer *found, mgr_err *err)
{
    const char *const places[] = {job->config.source.tokenizer, job->source_files.directory,
                                  job->config.source.path};
    const size_t first = places[0][0] ? 0 : 1, end = places[0][0] ? 1 : 3;
    *found = (mgr_sidecar_tokenizer){-1, -1, 0};
    for (size_t p = first; p < end; p++) {
        if (!places[p] || count_files(places[p]) == 0)
            continue;
        for (size_t i = 0; i < N_TOKENIZER_FILES; i++) {
            if (!has_file(places[p], tokenizer_files[i]))
                continue;
            MGR_TRY(copy_file(places[p], directory, tokenizer_files[i], err));
            found->n_files++;
        }
        return look_up_ids(places[p], found, err);
    }
    return MGR_OK;
}

static json_t *hex(uint64_t value, int digits)
{
    return json_sprintf("%0*llx", digits, (unsigned long long)value);
}

/* Each source file with its size and a hash over the names, sizes and CRC-32s of its records. */
json_t *mgr_sidecar_sources(const mgr_job *job)
{
    const mgr_catalogue *const cat = &job->source.cat;
    json_t *const list = json_array();
    for (uint32_t f = 0; f < cat->n_files; f++) {
        XXH64_hash_t hash = 0;
        for (size_t i = 0; i < cat->n_records; i++) {
            const mgr_record *const r = &cat->records[i];
            const uint64_t facts[2] = {r->size, r->crc32};
            if (r->file != f)
                continue;
            hash = XXH3_64bits_withSeed(r->name, strlen(r->name), hash);
            hash = XXH3_64bits_withSeed(facts, sizeof facts, hash);
        }
        json_array_append_new(list, json_pack("{s:s,s:I,s:o}", "path", cat->files[f].path, "bytes",
                                              (json_int_t)cat->files[f].bytes, "records_xxh3",
                                              hex(hash, 16)));
    }
    return list;
}

static json_t *file_tensors(const mgr_job *job, uint32_t file)
{
    json_t *const tensors = json_object();
    for (size_t i = 0; i < job->target.cat.n_stored; i++) {
        const mgr_stored *const s = &job->target.cat.stored[i];
        if (s->file == file)
            json_object_set_new(
                tensors, s->name,
                json_pack("{s:I,s:o}", "bytes",
                          (json_int_t)(s->shape[0] * s->stride[0] * mgr_dtype_size(s->dtype)),
                          "crc32", hex(job->stored_crc[i], 8)));
    }
    return tensors;
}

static json_t *target_list(const mgr_job *job)
{
    const mgr_catalogue *const cat = &job->target.cat;
    const int32_t *const owner = job->target.layout.file_owner;
    const uint32_t *const crc = job->file_crc; /* NULL where the container seals its files itself */
    json_t *const list = json_array();
    for (uint32_t f = 0; f < cat->n_files; f++) {
        json_t *const file =
            json_pack("{s:s,s:I,s:o}", "path", cat->files[f].path, "bytes",
                      (json_int_t)cat->files[f].bytes, "crc32", crc ? hex(crc[f], 8) : json_null());
        if (owner)
            json_object_set_new(file, "expert_parallel_rank",
                                owner[f] < 0 ? json_null() : json_integer(owner[f]));
        if (job->file_sha256)
            json_object_set_new(file, "sha256", json_string(job->file_sha256[f]));
        json_object_set_new(file, "tensors", file_tensors(job, f));
        json_array_append_new(list, file);
    }
    return list;
}

/* The parsed configuration comes back from its own dump, so that it is written in one place. */
int mgr_sidecar_manifest(const mgr_job *job, const char *directory, mgr_err *err)
{
    mgr_buf config = {0};
    MGR_TRY(mgr_config_dump(&job->config, &config, err));
    json_t *const skipped = json_object();
    for (int k = 0; k < MGR_SKIP_COUNT; k++)
        json_object_set_new(skipped, mgr_skip_name((mgr_skip)k),
                            json_integer((json_int_t)job->source.cat.skipped[k]));
    /* the seed is text: it may be above what JSON readers take for a whole number */
    json_t *const manifest = json_pack(
        "{s:i,s:s,s:s,s:i,s:o,s:o,s:{s:s,s:s,s:o,s:o},s:{s:s,s:o}}", "schema", 1, "program",
        "mgr-upcycle", "version", MGR_VERSION, "contract", MGR_CONTRACT_VERSION, "seed",
        json_sprintf("%llu", (unsigned long long)job->config.upcycle.seed), "config",
        job->source_format ? json_string(config.data) : json_null(), "source", "format",
        job->source_format ? job->source_format->name : "synth", "path",
        job->source_files.directory ? job->source_files.directory : "", "skipped", skipped, "files",
        mgr_sidecar_sources(job), "target", "format", job->target_format->name, "files",
        target_list(job));
    const int rc = manifest ? mgr_sidecar_json(directory, "mgr-manifest.json", manifest, err)
                            : mgr_fail(err, MGR_ERR_INTERNAL, "cannot make the manifest");
    json_decref(manifest);
    mgr_buf_clear(&config);
    return rc;
}
