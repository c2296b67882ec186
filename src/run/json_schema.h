/* The configuration file as a JSON Schema (draft 2020-12), for editors that check and complete. */
#ifndef MGR_RUN_JSON_SCHEMA_H
#define MGR_RUN_JSON_SCHEMA_H

#include "core/str.h"
#include "mgr/config.h"

/* Append the schema of all keys: types, choices, ranges, defaults, whose a key is, and that there
 * are no others. Which keys go together is left to mgr_config_settle. Local. */
int mgr_config_json_schema(mgr_schema *schema, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif
