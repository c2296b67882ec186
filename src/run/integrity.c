/* Megatron's integrity.json: {"algorithm": "sha256", "files": {name: digest}}, of the plain files
 * of a torch_dist folder (dist_checkpointing/validation.py, core 0.19). */
#include <string.h>
#include <strings.h>

#include "core/say_run.h"
#include "fmt/json.h"
#include "fmt/sha256.h"
#include "io/file.h"
#include "run/run.h"
#include "run/source_sums.h"

#define NAME "integrity.json"
#define MAX_INTEGRITY ((uint64_t)64 << 20)

static int no_integrity(const char *folder, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_NOT_FOUND, "no '" NAME "' in '%s', which source.sha256 asks for", folder);
    return mgr_hint(err, "set 'source.sha256: false'");
}

/* Rank 0. */
static int read_text(const char *folder, mgr_buf *text, mgr_err *err)
{
    mgr_buf path = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/" NAME, folder);
    if (rc == MGR_OK && !mgr_path_exists(path.data))
        rc = no_integrity(folder, err);
    else if (rc == MGR_OK)
        rc = mgr_read_file(path.data, MAX_INTEGRITY, text, err);
    mgr_buf_clear(&path);
    return rc;
}

static bool is_name(const char *name)
{
    return name[0] && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Every file that is read must be listed: what nobody vouches for is no integrity. */
static int check_listed(const mgr_job *job, const json_t *files, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->source.cat;
    for (size_t f = 0; f < cat->n_files; f++) {
        const char *const slash = strrchr(cat->files[f].path, '/');
        if (!json_object_get(files, slash ? slash + 1 : cat->files[f].path))
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not listed in '" NAME "' beside it",
                            cat->files[f].path);
    }
    return MGR_OK;
}

static int check_file(const char *folder, const char *name, const char *said, mgr_err *err)
{
    mgr_buf path = {0};
    char found[MGR_SHA256_TEXT];
    int rc = mgr_buf_fmt(&path, err, "%s/%s", folder, name);
    if (rc == MGR_OK && !mgr_is_plain_file(path.data))
        rc = mgr_fail(err, MGR_ERR_NOT_FOUND, "no file '%s', which '" NAME "' lists", path.data);
    if (rc == MGR_OK)
        rc = mgr_sha256_file(path.data, found, err);
    if (rc == MGR_OK && (!said || strcasecmp(found, said) != 0)) {
        mgr_fail(err, MGR_ERR_FORMAT, "'%s' is damaged: its SHA-256 is %s, '" NAME "' says %.64s",
                 path.data, found, said ? said : "nothing");
        rc = mgr_hint(err, "bring back the file that was saved");
    }
    mgr_buf_clear(&path);
    return rc;
}

/* This rank's share of the files. */
static int check_files(const mgr_job *job, const json_t *files, mgr_err *err)
{
    const char *const folder = job->source_files.directory;
    const char *name;
    json_t *digest;
    uint32_t at = 0;
    json_object_foreach((json_t *)(uintptr_t)files, name, digest)
    {
        if (!is_name(name))
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "'%s/" NAME "' lists '%s', which is no file's name", folder, name);
        if (at++ % job->ranks == job->rank)
            MGR_TRY(check_file(folder, name, json_string_value(digest), err));
    }
    return MGR_OK;
}

static int check(const mgr_job *job, const mgr_buf *text, mgr_err *err)
{
    json_t *root = NULL;
    MGR_TRY(mgr_json_parse(&root, NAME, text->data ? text->data : "", text->len, err));
    const char *const algorithm = json_string_value(json_object_get(root, "algorithm"));
    const json_t *const files = json_object_get(root, "files");
    int rc = MGR_OK;
    if (!algorithm || strcasecmp(algorithm, "sha256") != 0 || !json_is_object(files))
        rc = mgr_fail(err, MGR_ERR_UNSUPPORTED, "'" NAME "' is not a list of SHA-256 of files");
    if (rc == MGR_OK)
        rc = check_listed(job, files, err);
    if (rc == MGR_OK)
        rc = check_files(job, files, err);
    json_decref(root);
    return rc;
}

int mgr_source_integrity(const mgr_job *job, mgr_err *err)
{
    mgr_buf text = {0};
    uint64_t bytes = 0;
    if (!job->config.source.sha256)
        return MGR_OK;
    for (size_t f = 0; f < job->source.cat.n_files; f++)
        bytes += job->source.cat.files[f].bytes;
    mgr_say_phase("check source");
    mgr_say_work(NULL, bytes, job->ranks);
    int rc = job->rank == 0 ? read_text(job->source_files.directory, &text, err) : MGR_OK;
    if (job->rank == 0 && rc != MGR_OK)
        err->rank = 0;
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &text, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, check(job, &text, err), err);
    mgr_buf_clear(&text);
    return rc;
}
