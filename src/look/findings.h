/*
 * What was found to differ of an output, for people and as JSON.
 */
#ifndef MGR_LOOK_FINDINGS_H
#define MGR_LOOK_FINDINGS_H

#include <stdbool.h>

#include <jansson.h>

#include "mgr/err.h"

typedef struct mgr_findings {
    json_t *list;  /* of what differs, in the order found; NULL while there is nothing */
    json_t *facts; /* {"word": "text"}, for people; NULL while there are none */
} mgr_findings;

void mgr_findings_clear(mgr_findings *findings);

/* Note a difference; file and tensor may be NULL, `byte` UINT64_MAX. Local. */
int mgr_findings_add(mgr_findings *findings, const char *file, const char *tensor, uint64_t byte,
                     const char *what, mgr_err *err) MGR_NODISCARD;
int mgr_findings_fact(mgr_findings *findings, const char *word, const char *text,
                      mgr_err *err) MGR_NODISCARD;

/* The facts, a line each; then the first difference with its place, and how many there are, or
 * `all` of them. */
void mgr_findings_print(const mgr_findings *findings, bool all);

/* One object: "path", "good", the members of `more` (taken over), "facts", "differences". */
int mgr_findings_json(const mgr_findings *findings, const char *path, json_t *more,
                      mgr_err *err) MGR_NODISCARD;

#endif
