#include "run/manifest.h"

#include <string.h>

#include "engine/journal.h"
#include "form/sidecar.h"
#include "io/file.h"
#include "mgr/version.h"
#include "run/record.h"
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

static bool is_beside(const mgr_catalogue *cat, const char *name)
{
    for (uint32_t f = 0; f < cat->n_files; f++)
        if (strcmp(cat->files[f].path, name) == 0)
            return false;
    return !mgr_has_prefix(name, MGR_JOURNAL_FOLDER "/") &&
           !mgr_has_prefix(name, MGR_PLAIN_FOLDER "/") && strcmp(name, MGR_MANIFEST_NAME) != 0;
}

/* What --force may remove together with the tensors' files (form/occupant.h). The manifest that the
 * small files were made with goes. */
static int add_beside(const mgr_job *job, const char *directory, json_t *manifest, mgr_err *err)
{
    mgr_arena arena = {0};
    const char **names = NULL;
    size_t n = 0;
    json_t *const list = json_array();
    const char *first;
    int rc = mgr_list_tree(directory, &arena, &names, &n, err);
    for (size_t i = 0; i < n; i++)
        if (is_beside(&job->target.cat, names[i]))
            json_array_append_new(list, json_string(names[i]));
    json_object_set_new(manifest, "beside", list);
    if (rc == MGR_OK)
        rc = mgr_arena_fmt(&arena, &first, err, "%s/" MGR_MANIFEST_NAME, directory);
    if (rc == MGR_OK)
        rc = mgr_remove_tree(first, err);
    mgr_arena_clear(&arena);
    return rc;
}

/* The parsed configuration comes back from its own dump, so that it is written in one place. */
int mgr_manifest_write(const mgr_job *job, const char *directory, bool complete, mgr_err *err)
{
    mgr_buf config = {0};
    MGR_TRY(mgr_config_dump(&job->config, mgr_config_tables, &config, err));
    json_t *const skipped = json_object();
    for (int k = 0; k < MGR_SKIP_COUNT; k++)
        json_object_set_new(skipped, mgr_skip_name((mgr_skip)k),
                            json_integer((json_int_t)job->source.cat.skipped[k]));
    /* the seed is text: it may be above what JSON readers take for a whole number */
    json_t *const manifest = json_pack(
        "{s:i,s:s,s:s,s:i,s:s,s:o,s:o,s:{s:s,s:s,s:o,s:o},s:{s:s,s:o},s:o}", "schema", 1, "program",
        "mgr-upcycle", "version", MGR_VERSION, "contract", MGR_CONTRACT_VERSION, "run", job->id,
        "seed", json_sprintf("%llu", (unsigned long long)job->config.upcycle.seed), "config",
        job->source_format ? json_string(config.data) : json_null(), "source", "format",
        job->source_format ? job->source_format->name : "synth", "path",
        job->source_files.directory ? job->source_files.directory : "", "skipped", skipped, "files",
        mgr_record_sources(job), "target", "format", job->target_format->name, "files",
        target_list(job), "remarks", remarks(job));
    int rc = manifest ? MGR_OK : mgr_fail(err, MGR_ERR_INTERNAL, "cannot make the manifest");
    if (rc == MGR_OK && complete)
        rc = add_beside(job, directory, manifest, err);
    if (rc == MGR_OK)
        rc = mgr_sidecar_json(directory, MGR_MANIFEST_NAME, manifest, err);
    json_decref(manifest);
    mgr_buf_clear(&config);
    return rc;
}
