/* libyaml's events without what a configuration must not have: anchors, aliases, tags, directives,
 * NUL bytes, other encodings, endless input. */
#ifndef MGR_CFG_YAML_EVENTS_H
#define MGR_CFG_YAML_EVENTS_H

#include <stdbool.h>
#include <stddef.h>

#include <yaml.h>

#include "mgr/err.h"

/* The largest text that is parsed: libyaml takes quadratic time on some hostile texts. */
#define MGR_YAML_MAX_BYTES ((size_t)1 << 20)

typedef struct mgr_yaml {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; owned */
    const char *file;   /* for messages; borrowed */
} mgr_yaml;

/* Check the bytes of `text` and start; `text` and `file` are borrowed. Close with mgr_yaml_close,
 * also after an error. Errors: MGR_ERR_CONFIG, MGR_ERR_NOMEM. Local. */
int mgr_yaml_open(mgr_yaml *yaml, const char *file, const char *text, size_t len,
                  mgr_err *err) MGR_NODISCARD;
void mgr_yaml_close(mgr_yaml *yaml);

/* Make the next event the current one. Errors: MGR_ERR_CONFIG, MGR_ERR_NOMEM. Local. */
int mgr_yaml_next(mgr_yaml *yaml, mgr_err *err) MGR_NODISCARD;

/* "a mapping", "a sequence", ...: the current event for messages. */
const char *mgr_yaml_event_name(const mgr_yaml *yaml);

/* Fail at a place of the file: "<file>:<line>:<column>: ..." with MGR_ERR_CONFIG. */
int mgr_yaml_fail(const mgr_yaml *yaml, yaml_mark_t mark, mgr_err *err, const char *fmt, ...)
    MGR_PRINTF(4, 5);

#endif
