/* mgr-upcycle: the program. */
#include <stdio.h>
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "cli/cli.h"
#include "cli/keys_page.h"
#include "core/mem.h"
#include "core/say_run.h"
#include "fmt/json.h"
#include "io/fault.h"
#include "io/file.h"
#include "mgr/config.h"
#include "mgr/rng.h"
#include "run/json_schema.h"
#include "run/run.h"

enum {
    DRY_RUN,
    PLAN_RANKS,
    BANDWIDTH,
    FORCE,
    VERIFY,
    JSON,
    RESUME,
    DISCARD,
    JOURNAL,
    SET,
    QUIET,
    VERBOSE,
    PROGRESS,
    SIMD,
    GET,
    UNIT_BYTES,
    SCHEMA,
    KEYS,
    LOG_JSON
};

#define MOST_RANKS (UINT64_C(1) << 20) /* that a dry run plans for */

static const mgr_option options[] = {
    [DRY_RUN] = {"dry-run", 'n', NULL, "read headers, print the plan, check space; write nothing"},
    [PLAN_RANKS] = {"ranks", 0, "N",
                    "with --dry-run: plan for N ranks, or NODESxRANKS, without starting MPI"},
    [BANDWIDTH] = {"bandwidth", 0, "SIZE",
                   "with --dry-run: bytes a second of all ranks together, for the time; or "
                   "'measure'"},
    [FORCE] = {"force", 'f', NULL, "replace an existing checkpoint once the new one is complete"},
    [VERIFY] = {"verify", 0, NULL,
                "write nothing: make every weight again and compare it with the target"},
    [JSON] = {"json", 'j', NULL, "with --verify: print JSON, with all that differs"},
    [RESUME] = {"resume", 'r', NULL, "continue a run that was stopped or killed, if there is one"},
    [DISCARD] = {"discard", 0, NULL, "leave nothing behind a failure that --resume could continue"},
    [JOURNAL] = {"journal", 0, "SECONDS", "how often finished work is made safe for --resume (20)"},
    [SET] = {"set", 's', "KEY=VALUE", "override a key of the configuration; may be repeated"},
    [QUIET] = {"quiet", 'q', NULL, "print errors only"},
    [VERBOSE] = {"verbose", 'v', NULL,
                 "print the effective configuration, all files, and calls as well"},
    [PROGRESS] = {"progress", 'p', "SECONDS",
                  "seconds between progress lines; 0: none (default 10)"},
    [SIMD] = {"simd", 0, "NAME", "scalar, avx2, avx512 or neon; the bytes are the same"},
    [GET] = {"get", 0, "KEY", "print the value of a key, as target.path, and exit"},
    [UNIT_BYTES] = {"unit-bytes", 0, "SIZE",
                    "smallest unit of work (4MiB); the bytes are the same"},
    [LOG_JSON] = {"log-json", 0, NULL,
                  "say phases, progress, remarks, summary and error as JSON, one a line"},
    [KEYS] = {"keys", 0, "FORM", "print all keys of CONFIG as markdown or scd (scdoc), and exit"},
    [SCHEMA] = {"schema", 0, NULL, "print a JSON Schema of CONFIG, for editors, and exit"},
};

static void print_more(void)
{
    mgr_cli_print_keys();
    printf("\n");
    mgr_cli_wrapped("exit status: 0 done, 1 --verify found a difference, 64 usage, 65 bad input, "
                    "66 input missing, 70 internal, 71 "
                    "system, 73 output exists or cannot be made or does not fit, 74 I/O, 75 "
                    "stopped, 78 configuration",
                    0, 0);
}

static const mgr_words_of option_words[] = {{"simd", "scalar avx2 avx512 neon"},
                                            {"bandwidth", "measure"},
                                            {"keys", "markdown scd"},
                                            {NULL, NULL}};

static const mgr_program program = {
    .name = "mgr-upcycle",
    .synopsis = "[OPTION]... CONFIG",
    .about = "Rewrite a checkpoint in parallel (Megatron, Hugging Face): upcycle a dense model to "
             "a mixture of experts, or lay it out anew. Run it under mpiexec or srun; any number "
             "of ranks gives the same bytes.",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
    .more_help = print_more,
    .words = option_words,
    .key_at = mgr_cli_key_at,
};

typedef struct arguments {
    mgr_run_options run;
    const char **sets;
    size_t capacity;
    const char *get;  /* NULL, or the key to print */
    const char *keys; /* NULL, or the form to print all keys in */
    bool schema, verify, json;
} arguments;

static int use_simd(const char *name, mgr_err *err)
{
    for (int s = 0; s < MGR_SIMD_COUNT; s++)
        if (strcmp(mgr_simd_name((mgr_simd)s), name) == 0)
            return mgr_simd_select((mgr_simd)s, err);
    return mgr_fail(err, MGR_ERR_USAGE, "--simd '%s' is not known", name);
}

/* What an option without a value switches on, or NULL. */
static bool *switch_of(arguments *a, size_t idx)
{
    switch (idx) {
    case DRY_RUN:
        return &a->run.write.dry_run;
    case FORCE:
        return &a->run.write.force;
    case VERIFY:
        return &a->verify;
    case JSON:
        return &a->run.json;
    case RESUME:
        return &a->run.write.resume;
    case DISCARD:
        return &a->run.write.discard;
    case SCHEMA:
        return &a->schema;
    case LOG_JSON:
        return &a->json;
    default:
        return NULL;
    }
}

/* "1024", or "128x8": of 128 nodes 8 each. */
static int take_ranks(mgr_run_options *run, const char *value, mgr_err *err)
{
    char nodes[32];
    const char *const x = strchr(value, 'x');
    if (!x || (size_t)(x - value) >= sizeof nodes)
        return mgr_cli_uint("ranks", value, 1, MOST_RANKS, &run->plan_ranks, err);
    snprintf(nodes, sizeof nodes, "%.*s", (int)(x - value), value);
    MGR_TRY(mgr_cli_uint("ranks", nodes, 1, MOST_RANKS, &run->plan_ranks, err));
    MGR_TRY(mgr_cli_uint("ranks", x + 1, 1, MOST_RANKS / run->plan_ranks, &run->plan_each, err));
    run->plan_ranks *= run->plan_each;
    return MGR_OK;
}

static int take_value(arguments *a, size_t idx, const char *value, mgr_err *err)
{
    switch (idx) {
    case PLAN_RANKS:
        return take_ranks(&a->run, value, err);
    case BANDWIDTH:
        a->run.measure = strcmp(value, "measure") == 0;
        return a->run.measure
                   ? MGR_OK
                   : mgr_cli_uint("bandwidth", value, 1, UINT64_C(1) << 50, &a->run.bandwidth, err);
    case JOURNAL:
        return mgr_cli_seconds("journal", value, &a->run.write.journal, err);
    case SET:
        MGR_TRY(mgr_grow(&a->sets, &a->capacity, a->run.n_sets + 1, sizeof *a->sets, err));
        a->sets[a->run.n_sets++] = value;
        return MGR_OK;
    case GET:
        a->get = value;
        return MGR_OK;
    case KEYS:
        a->keys = value;
        return MGR_OK;
    case PROGRESS:
        return mgr_cli_seconds("progress", value, &a->run.write.progress, err);
    case UNIT_BYTES:
        return mgr_cli_uint("unit-bytes", value, 1024, UINT64_C(1) << 30, &a->run.unit_min, err);
    default:
        return use_simd(value, err);
    }
}

static int take(void *context, size_t idx, const char *value, mgr_err *err)
{
    arguments *const a = context;
    bool *const on = switch_of(a, idx);
    if (on)
        *on = true;
    else if (idx == QUIET || idx == VERBOSE)
        a->run.verbosity = idx == QUIET ? -1 : 1;
    else
        return take_value(a, idx, value, err);
    return MGR_OK;
}

/* Options that do not go together. */
static int check_options(const arguments *a, mgr_err *err)
{
    const mgr_write_options *const w = &a->run.write;
    if (w->force && w->resume)
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--force begins anew and --resume continues: choose one");
    if (a->verify && (w->force || w->resume || w->dry_run || w->discard))
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--verify writes nothing: --force, --resume, --discard and --dry-run do "
                        "not go with it");
    if (a->run.json && !a->verify)
        return mgr_fail(err, MGR_ERR_USAGE, "--json is for --verify");
    if (a->run.plan_ranks && !w->dry_run)
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--ranks is for --dry-run; how many ranks run is mpiexec's business");
    if ((a->run.bandwidth || a->run.measure) && !w->dry_run)
        return mgr_fail(err, MGR_ERR_USAGE, "--bandwidth is for --dry-run");
    return MGR_OK;
}

static int parse(arguments *a, int argc, char **argv, mgr_err *err)
{
    int first;
    a->run.write.progress = 10; /* short runs end before the first line */
    a->run.write.journal = MGR_JOURNAL_SECONDS;
    MGR_TRY(mgr_cli_parse(&program, argc, argv, take, a, &first, err));
    if ((a->schema || a->keys) && argc == first)
        return MGR_OK;
    if (a->schema || a->keys)
        return mgr_fail(err, MGR_ERR_USAGE, "--%s takes no CONFIG", a->schema ? "schema" : "keys");
    MGR_TRY(check_options(a, err));
    if (argc - first != 1) {
        mgr_fail(err, MGR_ERR_USAGE,
                 argc == first ? "no CONFIG is given" : "more than one CONFIG is given");
        return mgr_hint(err, "see mgr-upcycle --help");
    }
    if (a->run.json)
        a->run.verbosity = -1;
    if (a->run.verbosity < 0)
        a->run.write.progress = 0;
    if (a->json) /* and no text beside it */
        a->run.verbosity = -1;
    a->run.config_path = argv[first];
    a->run.sets = a->sets;
    return MGR_OK;
}

static int print_value(const mgr_config *config, const char *name, mgr_err *err)
{
    const mgr_key *const key = mgr_schema_row(mgr_config_tables, config, name);
    mgr_buf text = {0};
    if (!key)
        return mgr_fail(err, MGR_ERR_USAGE, "--get '%s': this configuration has no such key", name);
    int rc = MGR_OK;
    if (key->kind == MGR_KEY_TEXT || key->kind == MGR_KEY_PATH || key->kind == MGR_KEY_CHOICE)
        rc = mgr_buf_text(&text, (const char *)config + key->offset, err);
    else
        rc = mgr_value_dump(config, key, &text, err);
    if (rc == MGR_OK)
        puts(text.data ? text.data : "");
    mgr_buf_clear(&text);
    return rc;
}

/* For scripts: no MPI, no source, only the configuration. */
static int get(const arguments *a, mgr_err *err)
{
    mgr_config *config = NULL;
    mgr_buf text = {0};
    int rc = mgr_alloc(&config, 1, sizeof *config, err);
    if (rc == MGR_OK)
        rc = mgr_read_file(a->run.config_path, MGR_CONFIG_MOST, &text, err);
    if (rc == MGR_OK)
        rc = mgr_config_parse(config, mgr_config_tables, a->run.config_path,
                              text.data ? text.data : "", text.len, a->sets, a->run.n_sets, err);
    if (rc == MGR_OK)
        rc = print_value(config, a->get, err);
    mgr_buf_clear(&text);
    mgr_free(config);
    return rc;
}

static int print_schema(mgr_err *err)
{
    mgr_buf text = {0};
    const int rc = mgr_config_json_schema(mgr_config_tables, &text, err);
    if (rc == MGR_OK)
        fputs(text.data, stdout);
    mgr_buf_clear(&text);
    return rc;
}

/* A plan for other ranks than these needs no MPI, and neither does one outside of a launcher. */
static int start(const arguments *a, mgr_comm **comm, mgr_err *err)
{
    const bool launched = mgr_cli_launched_rank() >= 0;
    const bool alone = a->run.write.dry_run && (a->run.plan_ranks || !launched);
    return alone ? mgr_comm_alone(comm, err) : mgr_cli_start(comm, err);
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    arguments a = {0};
    mgr_comm *comm = NULL;
    bool good = true;
    mgr_json_count_memory();
    int rc = parse(&a, argc, argv, &err);
    const bool alone = rc != MGR_OK || a.get || a.schema || a.keys;
    if (rc == MGR_OK && a.schema)
        rc = print_schema(&err);
    else if (rc == MGR_OK && a.keys)
        rc = mgr_cli_document_keys(a.keys, &err);
    else if (rc == MGR_OK && a.get)
        rc = get(&a, &err);
    if (alone) {
        mgr_free(a.sets);
        return rc == MGR_OK ? 0 : mgr_cli_usage_end(&program, &err);
    }
    if (a.run.plan_ranks && mgr_cli_launched_rank() > 0) { /* one process plans for all */
        mgr_free(a.sets);
        return 0;
    }
    rc = start(&a, &comm, &err);
    mgr_cli_catch_signals();
    if (rc == MGR_OK) {
        mgr_fault_set_rank(mgr_comm_rank(comm));
        if (mgr_comm_rank(comm) == 0)
            mgr_say_run(a.json, a.run.write.progress);
        rc = a.verify ? mgr_run_verify(comm, &a.run, &good, NULL, &err)
                      : mgr_run_upcycle(comm, &a.run, NULL, &err);
    }
    mgr_free(a.sets);
    const int status = mgr_cli_end(&program, comm, rc, &err);
    return status == 0 && !good ? MGR_CLI_DIFFERENT : status;
}
