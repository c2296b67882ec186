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

/* Append the value as a YAML scalar that mgr_value_set takes back to the same value. Local. */
int mgr_value_dump(const mgr_config *config, const mgr_key *key, mgr_buf *out,
                   mgr_err *err) MGR_NODISCARD;

#endif
