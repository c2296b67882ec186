/* Look-ups in the tables of configuration keys. */
#ifndef MGR_CFG_SCHEMA_H
#define MGR_CFG_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>

#include "mgr/config.h"

#define MGR_N_SECTIONS 4

/* The sections, in their order: "source", "model", "upcycle", "target". */
extern const char *const mgr_config_sections[MGR_N_SECTIONS];
#define MGR_SECTION_SOURCE 0

/* Every key once, by its first row: those of the top level, then section by section. */
typedef struct mgr_key_list {
    const mgr_key *keys[MGR_CONFIG_MAX_KEYS];
    size_t n;
} mgr_key_list;

void mgr_schema_list(mgr_schema *schema, mgr_key_list *out);

/* All rows, table by table: start with zeros; NULL behind the last. *table may be NULL. */
typedef struct mgr_row_walk {
    const mgr_key_table *current;
    size_t table, row; /* the next ones */
} mgr_row_walk;

const mgr_key *mgr_schema_next(mgr_schema *schema, mgr_row_walk *at, const mgr_key_table **table);

/* The first row of this full name ("upcycle.seed"), or NULL. */
const mgr_key *mgr_schema_find(mgr_schema *schema, const char *name);

/* The row of this name that is in force under what `config` has chosen, or NULL. */
const mgr_key *mgr_schema_row(mgr_schema *schema, const mgr_config *config, const char *name);

/* Do two rows mean the same by their key? */
bool mgr_schema_same(const mgr_key *a, const mgr_key *b);

/* "[megatron-torch, hdf5] ": whose a row of this meaning is; "" for rows of every run and of every
 * mode. Returns out. */
const char *mgr_schema_owners(mgr_schema *schema, const mgr_key *row, char *out, size_t size);

/* Is the table's owner chosen? */
bool mgr_schema_applies(const mgr_config *config, const mgr_key_table *table);

/* The key that chooses among the owners of a kind ("target.format"), and what it is set to. */
const char *mgr_schema_chooser(mgr_owner kind);
const char *mgr_schema_chosen(const mgr_config *config, mgr_owner kind);

/* The name without its section: "seed" of "upcycle.seed". */
const char *mgr_config_key_leaf(const mgr_key *key);

/* The section of a key as an index into mgr_config_sections, -1 for a key of the top level. */
int mgr_config_key_section(const mgr_key *key);

/* Which section is called `name`; -1 if none is. */
int mgr_config_section(const char *name);

/* What the user may have meant by the unknown key `name` of `section` (-1: the top level), as
 * "; did you mean 'x'?" or the like; empty if nothing is near. Returns out. */
const char *mgr_config_suggest(mgr_schema *schema, int section, const char *name, char *out,
                               size_t size);

/* The same for a full name, as --set has it. */
const char *mgr_config_suggest_full(mgr_schema *schema, const char *name, char *out, size_t size);

#endif
