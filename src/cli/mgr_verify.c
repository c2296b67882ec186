/* mgr-verify: is an output still what was written? */
#include "cli/cli.h"
#include "look/audit.h"

enum { JSON, QUIET };

static const mgr_option options[] = {
    [JSON] = {"json", 'j', NULL, "print JSON, with all that differs"},
    [QUIET] = {"quiet", 'q', NULL, "print errors only; the exit status tells"},
};

static const mgr_program program = {
    .name = "mgr-verify",
    .synopsis = "[OPTION]... OUT",
    .about =
        "Hold an output of mgr-upcycle against its manifest: every byte of every file, the\n"
        "tensors and the model that they show, and its experts against the ledger. Run it alone\n"
        "or under mpiexec: the ranks share the reading. Exit status 0 if all is as it was\n"
        "written, 1 if anything differs.",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
};

static int take(void *context, size_t idx, const char *value, mgr_err *err)
{
    mgr_audit_options *const o = context;
    (void)value;
    (void)err;
    if (idx == JSON)
        o->json = true;
    else
        o->quiet = true;
    return MGR_OK;
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_audit_options o = {0};
    mgr_comm *comm = NULL;
    bool good = true;
    int first;
    int rc = mgr_cli_parse(&program, argc, argv, take, &o, &first, &err);
    if (rc == MGR_OK && argc - first != 1) {
        mgr_fail(&err, MGR_ERR_USAGE, "one folder is needed: OUT");
        rc = mgr_hint(&err, "see mgr-verify --help");
    }
    if (rc != MGR_OK)
        return mgr_cli_usage_end(&program, &err);
    o.path = argv[first];
    rc = mgr_cli_start(&comm, &err);
    mgr_cli_catch_signals();
    if (rc == MGR_OK)
        rc = mgr_audit(comm, &o, &good, &err);
    const int status = mgr_cli_end(&program, comm, rc, &err);
    return status == 0 && !good ? MGR_CLI_DIFFERENT : status;
}
