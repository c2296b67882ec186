/* mgr-inspect: look at a checkpoint. */
#include "cli/cli.h"
#include "look/compare.h"
#include "look/inspect.h"

enum { JSON, SUMMARY, OPTIMIZER };

#define MOST 20 /* differences that are listed */

static const mgr_option options[] = {
    [JSON] = {"json", 'j', NULL, "print JSON"},
    [SUMMARY] = {"summary", 's', NULL, "do not list the tensors"},
    [OPTIMIZER] = {"optimizer", 'o', NULL, "list the masters and moments of an optimizer, too"},
};

static const mgr_program program = {
    .name = "mgr-inspect",
    .synopsis = "[OPTION]... PATH [PATH2]",
    .about = "Show the tensors, shapes, types, layout and sizes of a checkpoint: a Megatron root "
             "or iteration, a Hugging Face folder, or one .pt, .bin or .safetensors file. Nothing "
             "in it is executed. With PATH2: compare the two logically, value by value, whatever "
             "their formats and splits; exit status 1 if they differ.",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
};

static int take(void *context, size_t idx, const char *value, mgr_err *err)
{
    mgr_inspect_options *const o = context;
    (void)value;
    (void)err;
    if (idx == JSON)
        o->json = true;
    else if (idx == OPTIMIZER)
        o->optimizer = true;
    else
        o->summary = true;
    return MGR_OK;
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_inspect_options o = {0};
    int first;
    int rc = mgr_cli_parse(&program, argc, argv, take, &o, &first, &err);
    const int n = argc - first;
    if (rc == MGR_OK && n != 1 && n != 2) {
        mgr_fail(&err, MGR_ERR_USAGE, "one PATH is needed, or two");
        rc = mgr_hint(&err, "see mgr-inspect --help");
    }
    if (rc == MGR_OK && n == 2 && (o.json || o.summary || o.optimizer))
        rc = mgr_fail(&err, MGR_ERR_USAGE, "--json, --summary and --optimizer are for one PATH");
    if (rc != MGR_OK)
        return mgr_cli_usage_end(&program, &err);
    bool same = true;
    o.path = argv[first];
    rc = n == 1 ? mgr_inspect(&o, &err) : mgr_compare(o.path, argv[first + 1], MOST, &same, &err);
    const int status = mgr_cli_end(&program, NULL, rc, &err);
    return status == 0 && !same ? MGR_CLI_DIFFERENT : status;
}
