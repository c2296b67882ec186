#include "run/manifest.h"

#include <string.h>

#include "core/say_run.h"
#include "engine/journal.h"
#include "fmt/json.h"
#include "fmt/sha256.h"
#include "form/sidecar.h"
#include "io/file.h"
#include "look/file_sums.h"
#include "mgr/version.h"
#include "run/recipe.h"
#include "run/record.h"
#include "run/run.h"
#include "run/stage.h"

static json_t *hex(uint64_t value, int digits)
{
    return json_sprintf("%0*llx", digits, (unsigned long long)value);
}

static json_t *file_tensors(const mgr_job *job, uint32_t file)
{
    json_t *const tensors = json_object();
    for (size_t i = 0; i < job->target.cat.n_stored; i++) {
        const mgr_stored *const s = &job->target.cat.stored[i];
        if (s->file == file)
            json_object_set_new(tensors, s->name,
                                json_pack("{s:I,s:o}", "bytes", (json_int_t)(mgr_stored_bytes(s)),
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

static void set_text(json_t *object, const char *key, const char *text)
{
    if (text)
        json_object_set_new(object, key, json_string(text));
}

/* {"carried": [...], "warnings": [...], ...} */
static json_t *remarks(const mgr_job *job)
{
    json_t *const kinds = json_object();
    for (size_t i = 0; i < job->remarks.n; i++) {
        const mgr_remark *const n = &job->remarks.list[i];
        const char *const kind = mgr_remark_name(n->kind);
        json_t *const entry = json_object();
        if (!json_object_get(kinds, kind))
            json_object_set_new(kinds, kind, json_array());
        set_text(entry, "field", n->field);
        set_text(entry, "was", n->was);
        set_text(entry, "now", n->now);
        set_text(entry, "why", n->why);
        json_array_append_new(json_object_get(kinds, kind), entry);
    }
    return kinds;
}

/* What the values come from: a checkpoint, a callback of libmgr's user, or nothing. */
static const char *made_of(const mgr_job *job)
{
    return job->source_format ? job->source_format->name : job->give ? "callback" : "synth";
}

/* Of each expert that of the source; where layers have lists of their own, list by list. */
static json_t *experts_from(const mgr_recipe *r)
{
    json_t *const all = json_array();
    for (uint32_t l = 0; l < (r->lists ? r->lists : 1); l++) {
        json_t *const list = r->lists > 1 ? json_array() : all;
        for (uint32_t e = 0; e < r->experts; e++)
            json_array_append_new(list, json_integer(r->from[(size_t)l * r->experts + e]));
        if (list != all)
            json_array_append_new(all, list);
    }
    return all;
}

static json_t *planes(unsigned kept)
{
    json_t *const names = json_array();
    for (int p = 0; p < MGR_PLANE_COUNT; p++)
        if (kept & 1u << p)
            json_array_append_new(names, json_string(mgr_plane_name((mgr_plane)p)));
    return names;
}

/* The parsed configuration comes back from its own dump, so that it is written in one place. */
static int make_manifest(const mgr_job *job, json_t **out, mgr_err *err)
{
    mgr_buf config = {0};
    MGR_TRY(mgr_config_dump(&job->config, mgr_config_tables, &config, err));
    json_t *const skipped = json_object();
    for (int k = 0; k < MGR_SKIP_COUNT; k++)
        json_object_set_new(skipped, mgr_skip_name((mgr_skip)k),
                            json_integer((json_int_t)job->source.cat.skipped[k]));
    /* the seed is text: it may be above what JSON readers take for a whole number */
    *out = json_pack("{s:i,s:s,s:s,s:i,s:s,s:o,s:o,s:{s:s,s:s,s:o,s:o},s:{s:s,s:o},s:o}", "schema",
                     MGR_MANIFEST_SCHEMA, "program", "mgr-upcycle", "version", MGR_VERSION,
                     "contract", MGR_CONTRACT_VERSION, "run", job->id, "seed",
                     json_sprintf("%llu", (unsigned long long)job->config.upcycle.seed), "config",
                     job->source_format ? json_string(config.data) : json_null(), "source",
                     "format", made_of(job), "path",
                     job->source_files.directory ? job->source_files.directory : "", "skipped",
                     skipped, "files", mgr_record_sources(job), "target", "format",
                     job->target_format->name, "files", target_list(job), "remarks", remarks(job));
    mgr_buf_clear(&config);
    if (*out && job->target.tensors.kept)
        json_object_set_new(json_object_get(*out, "target"), "planes",
                            planes(job->target.tensors.kept));
    if (*out && job->recipe.from) {
        json_object_set_new(*out, "experts_from", experts_from(&job->recipe));
    }
    for (uint32_t i = 0; *out && i < job->n_branches; i++) {
        const mgr_branch *const b = &job->branches[i];
        if (i == 0)
            json_object_set_new(*out, "sources", json_array());
        json_array_append_new(
            json_object_get(*out, "sources"),
            json_pack("{s:s,s:s}", "format", b->format->name, "path", b->files.directory));
    }
    if (*out && (job->method || job->joined)) {
        const mgr_step_zero step = mgr_step_zero_of(job);
        json_object_set_new(*out, "step_zero",
                            json_pack("{s:b,s:s}", "identical", step.identical, "text", step.text));
    }
    return *out ? MGR_OK : mgr_fail(err, MGR_ERR_NOMEM, "no memory for the manifest");
}

int mgr_manifest_begin(const mgr_job *job, const char *directory, mgr_err *err)
{
    json_t *manifest = NULL;
    int rc = make_manifest(job, &manifest, err);
    if (rc == MGR_OK)
        rc = mgr_sidecar_json(directory, MGR_MANIFEST, manifest, err);
    json_decref(manifest);
    return rc;
}

/* Rank 0: every file of the output but the manifest; what the engine wrote has its checksum. */
static int list_files(const mgr_job *job, const char *directory, mgr_file_sums *sums, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->target.cat;
    mgr_arena arena = {0};
    const char **names = NULL, *path;
    size_t n = 0;
    int rc = mgr_list_tree(directory, &arena, &names, &n, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++) {
        uint64_t bytes = 0;
        if (strcmp(names[i], MGR_MANIFEST) == 0 || mgr_has_suffix(names[i], "/") ||
            mgr_has_prefix(names[i], MGR_JOURNAL_FOLDER "/") ||
            mgr_has_prefix(names[i], MGR_PLAIN_FOLDER "/"))
            continue;
        rc = mgr_arena_fmt(&arena, &path, err, "%s/%s", directory, names[i]);
        if (rc == MGR_OK)
            rc = mgr_file_bytes(path, &bytes, err);
        if (rc == MGR_OK)
            rc = mgr_file_sums_add(sums, names[i], bytes, err);
        for (size_t f = 0; rc == MGR_OK && job->file_crc && f < cat->n_files; f++)
            if (strcmp(cat->files[f].path, names[i]) == 0) {
                sums->list[sums->n - 1].crc32 = job->file_crc[f];
                sums->list[sums->n - 1].known = true;
            }
    }
    mgr_arena_clear(&arena);
    return rc;
}

static json_t *files_list(const mgr_file_sums *sums)
{
    json_t *const list = json_array();
    for (size_t i = 0; i < sums->n; i++)
        json_array_append_new(list, json_pack("{s:s,s:I,s:o}", "path", sums->list[i].path, "bytes",
                                              (json_int_t)sums->list[i].bytes, "crc32",
                                              hex(sums->list[i].crc32, 8)));
    return list;
}

/* The digest is the last key, so that it covers all that is before it. */
static int write_sealed(const char *directory, json_t *manifest, mgr_err *err)
{
    mgr_buf path = {0}, text = {0};
    json_object_set_new(manifest, MGR_SEAL_KEY, json_string(MGR_SEAL_ZEROS));
    int rc = mgr_buf_fmt(&path, err, "%s/" MGR_MANIFEST, directory);
    if (rc == MGR_OK)
        rc = mgr_json_dump(manifest, 2, &text, err);
    if (rc == MGR_OK)
        rc = mgr_digest_seal(text.data, text.len, err);
    if (rc == MGR_OK)
        rc = mgr_remove_tree(path.data, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, text.data, text.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

int mgr_manifest_finish(mgr_job *job, const char *directory, mgr_err *err)
{
    mgr_file_sums sums = {0};
    const bool root = job->rank == 0;
    json_t *manifest = NULL;
    int rc = mgr_agree_root(job, root ? list_files(job, directory, &sums, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = mgr_file_sums_share(job->comm, &sums, err);
    if (rc == MGR_OK)
        mgr_say_phase("checksums");
    if (rc == MGR_OK)
        rc = mgr_file_sums_take(job->comm, directory, &sums, NULL, err);
    if (rc == MGR_OK && root)
        rc = make_manifest(job, &manifest, err);
    if (rc == MGR_OK && root) {
        json_object_set_new(manifest, "files", files_list(&sums));
        rc = write_sealed(directory, manifest, err);
    }
    json_decref(manifest);
    mgr_file_sums_clear(&sums);
    return mgr_agree_root(job, rc, err);
}
