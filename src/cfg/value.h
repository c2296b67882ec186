/* One value of the configuration: text to field, and field to text. */
#ifndef MGR_CFG_VALUE_H
#define MGR_CFG_VALUE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/str.h"
#include "mgr/config.h"

/* A scalar as the user wrote it. */
typedef struct mgr_scalar {
    const char *text; /* `len` bytes and a NUL behind them */
    size_t len;
    bool plain; /* written without quotes */
} mgr_scalar;

/* Check the scalar against the key's type and range and store it. False: nothing is stored, and
 * `why` tells what is wrong ("'upcycle.ratio' is 1.5, must be within 0 .. 1"). Local. */
bool mgr_value_set(mgr_config *config, const mgr_key *key, const mgr_scalar *scalar, char *why,
                   size_t size);

/* Is a stored choice one that this row of the key has? If not, `why` tells. Local. */
bool mgr_value_check(const mgr_config *config, const mgr_key *key, char *why, size_t size);

/* Store the key's default. Local. */
int mgr_value_default(mgr_config *config, const mgr_key *key, mgr_err *err) MGR_NODISCARD;

/* Append the value as a YAML scalar that mgr_value_set takes back to the same value. Local. */
int mgr_value_dump(const mgr_config *config, const mgr_key *key, mgr_buf *out,
                   mgr_err *err) MGR_NODISCARD;

/* What a scalar looks like. Whole numbers: -?(0|[1-9][0-9]*). */
bool mgr_scalar_is_null(const mgr_scalar *scalar);
bool mgr_scalar_is_bool(const mgr_scalar *scalar, bool *value);
bool mgr_scalar_is_whole(const mgr_scalar *scalar);
bool mgr_scalar_is_real(const mgr_scalar *scalar);

/* The shortest decimal that reads back to the same double, with a point; returns out. */
const char *mgr_exact_real(double value, char *out, size_t size);

/* Append `text` in double quotes, as YAML and JSON both read it. */
int mgr_dump_quoted(const char *text, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif
