/* The keys of every run, and those of a mode. */
#ifndef MGR_CFG_CORE_KEYS_H
#define MGR_CFG_CORE_KEYS_H

#include "mgr/config.h"

/* Table `idx` of these, NULL behind the last. */
const mgr_key_table *mgr_core_keys(size_t idx);

#endif
