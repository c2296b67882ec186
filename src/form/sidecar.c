#include "form/sidecar.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "io/file.h"

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

int mgr_sidecar_copy_tokenizer(const mgr_output *out, const char *directory,
                               mgr_sidecar_tokenizer *found, mgr_err *err)
{
    const char *const places[] = {out->config->source.tokenizer,
                                  out->origin ? out->origin->directory : NULL,
                                  out->config->source.path};
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
