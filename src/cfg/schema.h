/* Look-ups in the table of configuration keys (mgr_config_schema). */
#ifndef MGR_CFG_SCHEMA_H
#define MGR_CFG_SCHEMA_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/config.h"

#define MGR_N_SECTIONS 4
#define MGR_MAX_KEYS 64 /* as many as mgr_config has places for */

/* The sections, in the order of the schema: "source", "model", "upcycle", "target". */
extern const char *const mgr_config_sections[MGR_N_SECTIONS];

/* The key of this full name ("upcycle.seed"), or NULL. Local. */
const mgr_key *mgr_config_key(const char *name);

/* Its position in the schema: the index of config->line and config->column. Local. */
size_t mgr_config_key_idx(const mgr_key *key);

/* The name without its section: "seed" of "upcycle.seed". Local. */
const char *mgr_config_key_leaf(const mgr_key *key);

/* The section of a key as an index into mgr_config_sections, -1 for a key of the top level. */
int mgr_config_key_section(const mgr_key *key);

/* Which section is called `name`; -1 if none is. Local. */
int mgr_config_section(const char *name);

/* What the user may have meant by the unknown key `name` of `section` (-1: the top level), as
 * "; did you mean 'x'?" or the like; empty if nothing is near. Returns out. Local. */
const char *mgr_config_suggest(int section, const char *name, char *out, size_t size);

/* The same for a full name, as --set has it. */
const char *mgr_config_suggest_full(const char *name, char *out, size_t size);

#endif
