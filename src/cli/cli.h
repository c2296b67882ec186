/*
 * What the programs share: an option table that drives getopt_long and --help, the one place that
 * prints an error, and the way out.
 */
#ifndef MGR_CLI_CLI_H
#define MGR_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"
#include "par/comm.h"

/* The exit status of what compares, where something differs: as diff and cmp have it. */
#define MGR_CLI_DIFFERENT 1

typedef struct mgr_option {
    const char *name;     /* "--force" without the dashes */
    char letter;          /* 0: none */
    const char *argument; /* "SECONDS"; NULL for a flag */
    const char *help;
} mgr_option;

/* Words that an option takes, with blanks between, for completion. */
typedef struct mgr_words_of {
    const char *option, *words;
} mgr_words_of;

/* A program: its name, synopsis, options, and a text behind them (may be NULL). */
typedef struct mgr_program {
    const char *name, *synopsis, *about;
    const mgr_option *options;
    size_t n_options;
    void (*more_help)(void);           /* printed behind the options; may be NULL */
    const mgr_words_of *words;         /* ends with NULLs; may be NULL */
    const char *(*key_at)(size_t idx); /* for options that take a KEY; may be NULL */
} mgr_program;

/* Called for each option in order, with its index in the table. Returns an mgr_code. */
typedef int (*mgr_option_taker)(void *context, size_t idx, const char *value, mgr_err *err);

/* Parse; operands are left in argv[*first]..argv[argc-1]. --help, --version and --completion of
 * every program are done here: they print and exit 0, before MPI is started. Errors: MGR_ERR_USAGE.
 * Local. */
int mgr_cli_parse(const mgr_program *program, int argc, char **argv, mgr_option_taker take,
                  void *context, int *first, mgr_err *err) MGR_NODISCARD;

/* Print what completes the program's command line in "bash", "zsh" or "fish"; false for another. */
bool mgr_cli_completion(const mgr_program *program, const char *shell);

/* Print the version, the commit, and what it was built with and runs on. */
void mgr_cli_about(const char *name);

/* Print `text` in the terminal's width (80 columns without one), from `column` on in each line; the
 * cursor is behind `used` characters. For --help. */
void mgr_cli_wrapped(const char *text, int used, int column);

/* A whole number, a number of bytes or a number of seconds of an option. MGR_ERR_USAGE. */
int mgr_cli_uint(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *out,
                 mgr_err *err) MGR_NODISCARD;
int mgr_cli_seconds(const char *option, const char *text, double *out, mgr_err *err) MGR_NODISCARD;

/* Print the error (rank 0 of `comm`, or everyone where comm is NULL), stop MPI, and return the exit
 * status. The same on all ranks, since MPICH's launcher ORs the statuses. */
int mgr_cli_end(const mgr_program *program, mgr_comm *comm, int rc, const mgr_err *err);

/* mgr_comm_start; then an error where the launcher started more processes than this MPI sees, each
 * of which would be a run of its own. Collective. Errors: MGR_ERR_MPI. */
int mgr_cli_start(mgr_comm **comm, mgr_err *err) MGR_NODISCARD;

/* The number that a launcher gave this process; -1 without one. Before MPI is started. */
int mgr_cli_launched_rank(void);

/* Errors found before MPI runs are found by every rank of mpiexec alike: one of them prints. */
int mgr_cli_usage_end(const mgr_program *program, const mgr_err *err);

/* SIGINT, SIGTERM, SIGHUP and SIGUSR1 (what Slurm's --signal sends) ask the run to stop in order.
 * To be called once MPI runs: MPICH takes SIGUSR1 for itself when it starts, as news of a rank that
 * failed, and without a launcher it would then wait forever. */
void mgr_cli_catch_signals(void);

#endif
