/*
 * What a run says of itself while it works, on rank 0: events as one JSON object per line, for
 * programs that watch it (--log-json), or the phase at hand, for people.
 */
#ifndef MGR_CORE_SAY_RUN_H
#define MGR_CORE_SAY_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

/* A member of an event: `text`, or a number where that is NULL. */
typedef struct mgr_fact {
    const char *key, *text;
    double number;
} mgr_fact;

/* From now on this process speaks: as JSON on stdout, or of its phases on stderr, where a run takes
 * longer than `seconds` (0: not at all); on a terminal in one line, in a log with the time. */
void mgr_say_run(bool json, double seconds);

/* Do events go to stdout, and nothing else? */
bool mgr_says_json(void);

/* {"event": "<event>", "time": <seconds since 1970>, ...}; nothing where no JSON is wanted. */
void mgr_say_event(const char *event, const mgr_fact *facts, size_t n);

/* What goes on from now: "headers", "write", "publish" ... */
void mgr_say_phase(const char *phase);

/* The phase has `total` to do, in bytes where `unit` is NULL, else in files, layers ...; `ranks` of
 * this process's kind share it evenly. */
void mgr_say_work(const char *unit, uint64_t total, uint32_t ranks);

/* Between two pieces of a phase's work: `n` more of it are done here, which is said when it is
 * time. MGR_ERR_INTERRUPTED once a stop was asked for (core/stop.h). Local. */
int mgr_say_step(uint64_t n, mgr_err *err) MGR_NODISCARD;

/* A line about the phase at hand: a share of all that it does, bytes, bytes a second, seconds left.
 * At most 79 columns: in place on a terminal; in a log a new line, with the time. */
void mgr_say_bytes(const char *phase, double share, double done, double total, double rate,
                   double left);

/* A phase that stands on the terminal goes, since other lines come. */
void mgr_say_no_phase(void);

#endif
