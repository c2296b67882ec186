#include "look/manifest_read.h"

#include <string.h>

#include "core/str.h"
#include "fmt/json.h"
#include "fmt/sha256.h"
#include "io/file.h"

#define MAX_MANIFEST ((uint64_t)1 << 30)

bool mgr_manifest_is_safe(const char *path)
{
    return path[0] && path[0] != '/' && strcmp(path, "..") != 0 && !mgr_has_prefix(path, "../") &&
           !strstr(path, "/../") && !mgr_has_suffix(path, "/..");
}

static int judge(mgr_buf *text, mgr_manifest_state *state, json_t **out, mgr_err *err)
{
    mgr_err why = MGR_ERR_INIT;
    json_t *root = NULL;
    bool good = false;
    if (text->len)
        MGR_TRY(mgr_digest_check(text->data, text->len, &good, err));
    const bool parsed = mgr_json_parse(&root, MGR_MANIFEST, text->data ? text->data : "", text->len,
                                       &why) == MGR_OK;
    const bool old = parsed && json_integer_value(json_object_get(root, "schema")) == 1;
    *state = good && parsed ? MGR_MANIFEST_WHOLE : old ? MGR_MANIFEST_OLD : MGR_MANIFEST_DAMAGED;
    if (*state == MGR_MANIFEST_WHOLE)
        *out = root;
    else
        json_decref(root);
    return MGR_OK;
}

int mgr_manifest_read(const char *folder, mgr_manifest_state *state, json_t **out, mgr_err *err)
{
    mgr_buf path = {0}, text = {0};
    *state = MGR_MANIFEST_ABSENT;
    *out = NULL;
    int rc = mgr_buf_fmt(&path, err, "%s/" MGR_MANIFEST, folder);
    if (rc == MGR_OK && mgr_path_exists(path.data)) {
        rc = mgr_read_file(path.data, MAX_MANIFEST, &text, err);
        if (rc == MGR_OK)
            rc = judge(&text, state, out, err);
    }
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

int mgr_manifest_by_path(const json_t *files, json_t **out, mgr_err *err)
{
    size_t i;
    json_t *entry;
    *out = json_object();
    bool good = *out;
    json_array_foreach(files, i, entry)
    {
        const char *const path = json_string_value(json_object_get(entry, "path"));
        good = good && (!path || json_object_set(*out, path, entry) == 0);
    }
    return good ? MGR_OK : mgr_fail(err, MGR_ERR_NOMEM, "no memory for the list of files");
}
