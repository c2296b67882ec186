#include "form/tokenizer.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "fmt/json.h"
#include "io/file.h"

#define MAX_FILE ((uint64_t)256 << 20)
#define MAX_ID (INT64_C(1) << 31)

/* transformers' tokenization_utils_base.py and the tokenizers of the families. */
static const char *const files[] = {
    "tokenizer.json", "tokenizer.model",         "tokenizer_config.json", "vocab.json",
    "merges.txt",     "special_tokens_map.json", "added_tokens.json",     "vocab.txt",
    "tekken.json",    "tokenizer.model.v[0-9]*", "spiece.model",          "sentencepiece.bpe.model",
    "*.tiktoken",     "tokenizer.model.bpe",
};
static const char *const companions[] = {
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "tokenization_*.py",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "*processor_config.json", /* of images, too */
};

static bool matches(const char *name, const char *const *patterns, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fnmatch(patterns[i], name, 0) == 0)
            return true;
    return false;
}

bool mgr_tokenizer_is_file(const char *name)
{
    return matches(name, files, sizeof files / sizeof files[0]);
}

bool mgr_tokenizer_is_companion(const char *name)
{
    return matches(name, companions, sizeof companions / sizeof companions[0]);
}

/* ---- small files ---- */

/* The file's text, empty if there is none. */
static int read_text(const char *directory, const char *name, mgr_buf *text, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_buf path = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, name);
    if (rc == MGR_OK && mgr_path_exists(path.data) && !mgr_is_dir(path.data) &&
        mgr_read_file(path.data, MAX_FILE, text, &ignored) != MGR_OK) {
        mgr_buf_clear(text);
        if (ignored.code == MGR_ERR_IO || ignored.code == MGR_ERR_NOMEM) {
            *err = ignored;
            rc = ignored.code;
        }
    }
    mgr_buf_clear(&path);
    return rc;
}

/* The object in the file, or NULL. Numbers may be above what a whole number holds:
 * model_max_length often is. */
static int read_object(const char *directory, const char *name, json_t **out, mgr_err *err)
{
    mgr_buf text = {0};
    *out = NULL;
    MGR_TRY(read_text(directory, name, &text, err));
    if (text.len)
        *out = json_loadb(text.data, text.len, JSON_DECODE_INT_AS_REAL, NULL);
    mgr_buf_clear(&text);
    return MGR_OK;
}

static int64_t whole(const json_t *value)
{
    if (json_is_array(value))
        value = json_array_get(value, 0);
    const double number = json_is_number(value) ? json_number_value(value) : -1;
    return number >= 0 && number < (double)MAX_ID ? (int64_t)number : -1;
}

static void take(int64_t *to, int64_t found)
{
    *to = *to >= 0 ? *to : found;
}

/* ---- tokenizer.json, which may be large: only its parts are parsed ---- */

/* Behind the string that begins at `at`. */
static const char *skip_string(const char *at, const char *end)
{
    for (at++; at < end && *at != '"'; at++)
        at += *at == '\\' && at + 1 < end;
    return at < end ? at + 1 : end;
}

/* Behind the value that begins at `at`. */
static const char *skip_value(const char *at, const char *end)
{
    int depth = 0;
    while (at < end) {
        if (*at == '"') {
            at = skip_string(at, end);
            if (depth == 0)
                return at;
            continue;
        }
        depth += *at == '{' || *at == '[';
        depth -= *at == '}' || *at == ']';
        if (depth < 0 || (depth == 0 && (*at == ',' || *at == '}' || *at == ']')))
            return at + (depth == 0 && *at != ',');
        at++;
    }
    return end;
}

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (isspace((unsigned char)*at) || *at == ',' || *at == ':'))
        at++;
    return at;
}

/* The value of `key` in the object of [at, end); NULL if it has none. */
static const char *member(const char *at, const char *end, const char *key, const char **behind)
{
    const size_t len = strlen(key);
    at = skip_space(at, end);
    if (at >= end || *at != '{')
        return NULL;
    for (at = skip_space(at + 1, end); at < end && *at == '"'; at = skip_space(at, end)) {
        const char *const name = at + 1, *const value = skip_space(skip_string(at, end), end);
        const bool is =
            (size_t)(end - name) > len && memcmp(name, key, len) == 0 && name[len] == '"';
        at = skip_value(value, end);
        *behind = at;
        if (is)
            return value;
    }
    return NULL;
}

/* The largest id of {"token": id, ...}, or the number of elements of [["token", score], ...]. */
static uint64_t count_ids(const char *at, const char *end)
{
    uint64_t n = 0;
    const bool list = at < end && *at == '[';
    for (at = skip_space(at + 1, end); at < end && *at != '}' && *at != ']';
         at = skip_space(at, end)) {
        if (!list)
            at = skip_space(skip_string(at, end), end);
        const uint64_t id = list ? n : (uint64_t)strtoull(at, NULL, 10);
        n = id + 1 > n && id < (uint64_t)MAX_ID ? id + 1 : n;
        at = skip_value(at, end);
    }
    return n;
}

static void take_length(mgr_tokenizer_facts *facts, uint64_t n)
{
    facts->length = n > facts->length ? n : facts->length;
}

/* What tokenizer.json says: the vocabulary, and in *added its list of added tokens. */
static int read_tokenizer(const char *directory, mgr_tokenizer_facts *facts, json_t **added,
                          mgr_err *err)
{
    mgr_buf text = {0};
    const char *behind, *end;
    MGR_TRY(read_text(directory, "tokenizer.json", &text, err));
    if (text.len == 0)
        return MGR_OK;
    end = text.data + text.len;
    const char *const list = member(text.data, end, "added_tokens", &behind);
    if (list)
        *added = json_loadb(list, (size_t)(behind - list), 0, NULL);
    const char *const model = member(text.data, end, "model", &behind);
    const char *const vocab = model ? member(model, behind, "vocab", &behind) : NULL;
    if (vocab)
        take_length(facts, count_ids(vocab, behind));
    mgr_buf_clear(&text);
    return MGR_OK;
}

static int read_vocab(const char *directory, mgr_tokenizer_facts *facts, mgr_err *err)
{
    mgr_buf text = {0};
    MGR_TRY(read_text(directory, "vocab.json", &text, err));
    if (text.len)
        take_length(facts, count_ids(text.data, text.data + text.len));
    mgr_buf_clear(&text);
    return MGR_OK;
}

/* ---- special tokens ---- */

static const char *content_of(const json_t *token)
{
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

/* The id of a token in added_tokens_decoder ({"1": {"content": ...}}) or in added_tokens of
 * tokenizer.json ([{"id": 1, "content": ...}]). */
static int64_t id_of(const char *content, const json_t *decoder, const json_t *added)
{
    const char *key;
    json_t *entry;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)decoder, key, entry)
    {
        const char *const other = content_of(entry);
        if (other && strcmp(other, content) == 0)
            return (int64_t)strtoll(key, NULL, 10);
    }
    json_array_foreach(added, i, entry)
    {
        const char *const other = content_of(entry);
        if (other && strcmp(other, content) == 0)
            return whole(json_object_get(entry, "id"));
    }
    return -1;
}

static void take_specials(const json_t *named, const json_t *decoder, const json_t *added,
                          mgr_tokenizer_facts *facts)
{
    const struct {
        const char *key;
        int64_t *to;
    } tokens[] = {
        {"bos_token", &facts->bos}, {"eos_token", &facts->eos}, {"pad_token", &facts->pad}};
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        const char *const content = content_of(json_object_get(named, tokens[i].key));
        if (content)
            take(tokens[i].to, id_of(content, decoder, added));
    }
}

static void count_added(const json_t *decoder, const json_t *added, mgr_tokenizer_facts *facts)
{
    const char *key;
    json_t *entry;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)decoder, key, entry)
    {
        const unsigned long long id = strtoull(key, NULL, 10);
        if (id < (unsigned long long)MAX_ID)
            take_length(facts, id + 1);
    }
    json_array_foreach(added, i, entry)
    {
        const int64_t id = whole(json_object_get(entry, "id"));
        take_length(facts, id >= 0 ? (uint64_t)id + 1 : 0);
    }
}

/* Ids that a model's own files give. */
static int take_ids(const char *directory, mgr_tokenizer_facts *facts, mgr_err *err)
{
    static const char *const names[] = {"generation_config.json", "config.json"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        json_t *object;
        MGR_TRY(read_object(directory, names[i], &object, err));
        take(&facts->bos, whole(json_object_get(object, "bos_token_id")));
        take(&facts->eos, whole(json_object_get(object, "eos_token_id")));
        take(&facts->pad, whole(json_object_get(object, "pad_token_id")));
        json_decref(object);
    }
    return MGR_OK;
}

int mgr_tokenizer_look_up(const char *directory, mgr_tokenizer_facts *facts, mgr_err *err)
{
    json_t *config = NULL, *map = NULL, *added = NULL;
    *facts = (mgr_tokenizer_facts){-1, -1, -1, 0};
    int rc = take_ids(directory, facts, err);
    if (rc == MGR_OK)
        rc = read_object(directory, "tokenizer_config.json", &config, err);
    if (rc == MGR_OK)
        rc = read_object(directory, "special_tokens_map.json", &map, err);
    if (rc == MGR_OK)
        rc = read_tokenizer(directory, facts, &added, err);
    if (rc == MGR_OK)
        rc = read_vocab(directory, facts, err);
    const json_t *const decoder = json_object_get(config, "added_tokens_decoder");
    take_specials(config, decoder, added, facts);
    take_specials(map, decoder, added, facts);
    count_added(decoder, added, facts);
    json_decref(config);
    json_decref(map);
    json_decref(added);
    return rc;
}
