/*
 * config_check FILE...: each FILE *.yaml is a configuration that parses and whose numbers fit each
 * other; each other FILE is a document that names every key of the schema.
 */
#include <stdlib.h>

#include "mgr/config.h"
#include "mgr/upcycle.h"
#include "support/check.h"

/* The whole file as text; the program ends if there is none. The caller frees. */
static char *read_text(const char *path, size_t *len)
{
    const size_t limit = 1 << 20;
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, limit);
    if (!file || !text) {
        perror(path);
        exit(1);
    }
    *len = fread(text, 1, limit - 1, file);
    fclose(file);
    return text;
}

static void check_config(const char *path)
{
    const int failed_before = check_failures;
    mgr_err err = MGR_ERR_INIT;
    size_t len;
    char *text = read_text(path, &len);
    mgr_config *config = calloc(1, sizeof *config);
    if (!config ||
        mgr_config_parse(config, mgr_config_tables, path, text, len, NULL, 0, &err) != MGR_OK) {
        fprintf(stderr, "%s\n", err.msg);
        check_failures++;
    } else {
        const bool hugging_face = strcmp(config->target.format, "moe-recipes") == 0;
        CHECK(mgr_method_find(config->upcycle.method) != NULL);
        CHECK(mgr_router_find(config->upcycle.router) != MGR_ROUTER_COUNT);
        CHECK(config->upcycle.top_k >= 1 && config->upcycle.top_k <= config->upcycle.experts);
        CHECK(config->upcycle.ratio >= 0 && config->upcycle.ratio <= 1);
        CHECK(config->target.expert_parallel >= 1);
        CHECK_INT(config->upcycle.experts % config->target.expert_parallel, 0);
        if (hugging_face) /* moe-recipes picks its model class by the word */
            CHECK_HAS(config->target.path, "Mixtral");
    }
    if (check_failures > failed_before)
        fprintf(stderr, "in %s\n", path);
    free(config);
    free(text);
}

static void check_document(const char *path)
{
    size_t len;
    char *text = read_text(path, &len);
    const mgr_key_table *table;
    for (size_t t = 0; (table = mgr_config_tables(t)); t++)
        for (size_t i = 0; i < table->n; i++)
            if (!strstr(text, table->keys[i].name)) {
                fprintf(stderr, "%s: no key '%s'\n", path, table->keys[i].name);
                check_failures++;
            }
    free(text);
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    for (int i = 1; i < argc; i++) {
        const char *dot = strrchr(argv[i], '.');
        if (dot && strcmp(dot, ".yaml") == 0)
            check_config(argv[i]);
        else
            check_document(argv[i]);
    }
    return CHECK_DONE();
}
