#include "cli/cli.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/say.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "core/str.h"
#include "io/file.h"
#include "mgr/version.h"

#define MAX_OPTIONS 32

/* How long MPI may take to end; 1024 ranks need a second or two. */
#define END_SECONDS 10

void mgr_cli_wrapped(const char *text, int used, int column)
{
    const int width = mgr_say_columns(STDOUT_FILENO) - 1 - column;
    if (used >= column && used > 0) /* no room beside it */
        printf("\n%*s", column, "");
    else
        printf("%*s", column - used, "");
    while ((int)strlen(text) > width) {
        int len = width;
        while (len > 1 && text[len] != ' ')
            len--;
        printf("%.*s\n%*s", len, text, column, "");
        text += len + 1;
    }
    printf("%s\n", text);
}

#define OPTION_COLUMN 29

static void print_option(char letter, const char *name, const char *argument, const char *help)
{
    char left[64], short_name[8] = "    ";
    if (letter)
        snprintf(short_name, sizeof short_name, "-%c, ", letter);
    snprintf(left, sizeof left, "  %s--%s%s%s", short_name, name, argument ? " " : "",
             argument ? argument : "");
    mgr_cli_wrapped(help, printf("%s", left), OPTION_COLUMN);
}

static void print_help(const mgr_program *p)
{
    printf("usage: %s %s\n", p->name, p->synopsis);
    mgr_cli_wrapped(p->about, 0, 0);
    printf("\noptions:\n");
    for (size_t i = 0; i < p->n_options; i++)
        print_option(p->options[i].letter, p->options[i].name, p->options[i].argument,
                     p->options[i].help);
    print_option(0, "completion", "SHELL", "print completion for bash, zsh or fish, and exit");
    print_option(0, "help", NULL, "print this and exit");
    print_option(0, "version", NULL, "print version, commit, MPI, HDF5 and CPU paths, and exit");
    if (p->more_help)
        p->more_help();
}

/* getopt's tables from ours; --help, --version and --completion are the last. */
static void make_tables(const mgr_program *p, struct option *longs, char *shorts)
{
    for (size_t i = 0; i < p->n_options; i++) {
        const mgr_option *const o = &p->options[i];
        longs[i] = (struct option){o->name, o->argument ? required_argument : no_argument, NULL,
                                   1000 + (int)i};
        if (o->letter) {
            *shorts++ = o->letter;
            if (o->argument)
                *shorts++ = ':';
        }
    }
    longs[p->n_options] = (struct option){"help", no_argument, NULL, 'h'};
    longs[p->n_options + 1] = (struct option){"version", no_argument, NULL, 'V'};
    longs[p->n_options + 2] = (struct option){"completion", required_argument, NULL, 'C'};
    *shorts++ = 'h';
    *shorts++ = 'V';
    *shorts = '\0';
}

static size_t index_of(const mgr_program *p, int c)
{
    if (c >= 1000)
        return (size_t)(c - 1000);
    for (size_t i = 0; i < p->n_options; i++)
        if (p->options[i].letter == c)
            return i;
    return p->n_options;
}

int mgr_cli_parse(const mgr_program *p, int argc, char **argv, mgr_option_taker take, void *context,
                  int *first, mgr_err *err)
{
    struct option longs[MAX_OPTIONS + 4] = {{0}};
    char shorts[2 * MAX_OPTIONS + 4];
    make_tables(p, longs, shorts);
    opterr = 0;
    for (;;) {
        const int at = optind;
        const int c = getopt_long(argc, argv, shorts, longs, NULL);
        if (c == -1)
            break;
        if (c == 'h' || c == 'V') {
            if (mgr_cli_launched_rank() > 0) /* one of a job's processes says it */
                exit(0);
            if (c == 'h')
                print_help(p);
            else
                mgr_cli_about(p->name);
            exit(0);
        }
        if (c == 'C' && mgr_cli_completion(p, optarg))
            exit(0);
        if (c == 'C')
            return mgr_fail(err, MGR_ERR_USAGE, "--completion '%s': known are bash, zsh and fish",
                            optarg);
        const size_t idx = index_of(p, c);
        if (c == '?' || idx >= p->n_options) {
            mgr_fail(err, MGR_ERR_USAGE, "cannot use option '%s'", argv[at < argc ? at : argc - 1]);
            return mgr_hint(err, "see %s --help", p->name);
        }
        MGR_TRY(take(context, idx, optarg, err));
    }
    *first = optind;
    return MGR_OK;
}

int mgr_cli_uint(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *out,
                 mgr_err *err)
{
    uint64_t value;
    if (!mgr_parse_bytes(text, &value) || value < min || value > max)
        return mgr_fail(err, MGR_ERR_USAGE, "--%s '%s' is not a number from %llu to %llu", option,
                        text, (unsigned long long)min, (unsigned long long)max);
    *out = value;
    return MGR_OK;
}

int mgr_cli_seconds(const char *option, const char *text, double *out, mgr_err *err)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= 1e6))
        return mgr_fail(err, MGR_ERR_USAGE, "--%s '%s' is not a number of seconds", option, text);
    *out = value;
    return MGR_OK;
}

static void print_error(const mgr_program *p, const mgr_err *err)
{
    const mgr_fact facts[] = {{.key = "status", .number = mgr_code_exit(err->code)},
                              {.key = "message", .text = err->msg},
                              {.key = "hint", .text = err->hint}};
    char label[64];
    mgr_say_no_phase();
    mgr_say_event("error", facts, err->hint[0] ? 3 : 2);
    snprintf(label, sizeof label, "%s: error", p->name);
    mgr_say_fitting(label, err->msg);
    if (err->hint[0])
        mgr_say_fitting("hint", err->hint);
}

/* What a process whose MPI does not end ends with, and who says so. */
static struct {
    int status;
    bool speaks, mute;
} last_word;

static void on_alarm(int signal_number)
{
    static const char text[] = "mgr-upcycle: warning: MPI did not end within 10 s of the result; "
                               "the result stands\n";
    (void)signal_number;
    if (last_word.speaks)
        mgr_say_from_handler(text, sizeof text - 1);
    _exit(last_word.status);
}

/* The result is agreed and on disk. MPI_Finalize may hang (MPICH 4.0 over UCX between hosts does
 * now and then), and then it ignores SIGTERM, too; a batch job must not wait for that. */
static void guard_the_end(int status, bool speaks)
{
    struct sigaction action = {.sa_handler = on_alarm};
    sigemptyset(&action.sa_mask);
    last_word.status = status;
    last_word.speaks = speaks;
    sigaction(SIGALRM, &action, NULL);
    alarm(END_SECONDS);
}

int mgr_cli_end(const mgr_program *p, mgr_comm *comm, int rc, const mgr_err *err)
{
    const bool speaks = !last_word.mute && (!comm || mgr_comm_rank(comm) == 0);
    fflush(stdout);
    if (rc != MGR_OK && speaks)
        print_error(p, err);
    guard_the_end(mgr_code_exit(rc), speaks);
    mgr_comm_stop(comm);
    alarm(0);
    return mgr_code_exit(rc);
}

/* What launchers say of the size of a step: Hydra and Slurm's PMI, Open MPI, Slurm. Where one of
 * them is right the others are of something around it, as Slurm's is around Hydra. */
static int check_launch(const mgr_comm *comm, mgr_err *err)
{
    static const char *const names[] = {"PMI_SIZE", "PMIX_SIZE", "OMPI_COMM_WORLD_SIZE",
                                        "SLURM_STEP_NUM_TASKS"};
    const long size = mgr_comm_size(comm);
    const char *name = NULL;
    long told = size;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *const text = getenv(names[i]);
        const long n = text ? strtol(text, NULL, 10) : 0;
        if (n == size)
            return MGR_OK;
        if (n > 1 && !name) {
            name = names[i];
            told = n;
        }
    }
    if (!name || size > 1)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_MPI, "%s says that %ld processes were started, and MPI shows only 1",
             name, told);
    return mgr_hint(err,
                    "start it with the mpiexec of the MPI that it was built with, or give srun "
                    "that MPI's --mpi, as pmi2");
}

int mgr_cli_start(mgr_comm **comm, mgr_err *err)
{
    MGR_TRY(mgr_comm_start(comm, err));
    const int rc = check_launch(*comm, err);
    last_word.mute = rc != MGR_OK && mgr_cli_launched_rank() > 0; /* each finds it, one says it */
    return rc;
}

int mgr_cli_launched_rank(void)
{
    /* launchers number their processes in the environment: Hydra and Slurm, Open MPI, PBS */
    static const char *const names[] = {"PMI_RANK", "PMIX_RANK", "SLURM_PROCID",
                                        "OMPI_COMM_WORLD_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *const text = getenv(names[i]);
        if (text)
            return (int)strtol(text, NULL, 10);
    }
    return -1;
}

int mgr_cli_usage_end(const mgr_program *p, const mgr_err *err)
{
    if (mgr_cli_launched_rank() <= 0)
        print_error(p, err);
    return mgr_code_exit(err->code);
}

static void on_signal(int signal_number)
{
    mgr_request_stop(signal_number);
}

void mgr_cli_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* nohup says so */
        sigaction(SIGHUP, &action, NULL);
    /* a closed pipe and a file size limit are errors of a write, and no reason to die untidily */
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
}
