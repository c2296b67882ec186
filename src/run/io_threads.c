/* `io_threads`: how many threads of each rank write. */
#include <stdlib.h>
#include <string.h>

#include "engine/write_behind.h"
#include "io/cores.h"
#include "run/run.h"

static bool is_auto(const mgr_config *c)
{
    return strcmp(c->io_threads, "auto") == 0;
}

int mgr_io_threads_check(const mgr_config *c, mgr_err *err)
{
    char *end;
    const unsigned long n = strtoul(c->io_threads, &end, 10);
    const bool number = c->io_threads[0] >= '0' && c->io_threads[0] <= '9' && *end == '\0';
    if (is_auto(c) || (number && n <= MGR_MOST_WRITERS))
        return MGR_OK;
    return mgr_config_fail(c, "io_threads", err,
                           "'io_threads' is '%s', not 'auto' or a number from 0 to %d",
                           c->io_threads, MGR_MOST_WRITERS);
}

void mgr_io_threads_choose(mgr_job *job, const mgr_cores *cores, size_t n)
{
    const mgr_config *const c = &job->config;
    const bool spare = !job->plan_ranks && mgr_cores_each(cores, n) > 1; /* others' are not known */
    job->io_threads_found = is_auto(c);
    job->io_threads = job->found    ? 0 /* nothing is written */
                      : !is_auto(c) ? (uint32_t)strtoul(c->io_threads, NULL, 10)
                                    : spare;
}

bool mgr_io_threads_give_up(mgr_job *job)
{
    const bool given = job->io_threads > 0 && job->io_threads_found;
    if (given)
        job->io_threads = 0;
    return given;
}
