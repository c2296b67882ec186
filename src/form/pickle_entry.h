/*
 * Entries of a dict that is emitted: a key and its value.
 */
#ifndef MGR_FORM_PICKLE_ENTRY_H
#define MGR_FORM_PICKLE_ENTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fmt/pickle_write.h"

static inline int mgr_entry_int(mgr_buf *out, const char *key, int64_t value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_int(out, value, err);
}

static inline int mgr_entry_bool(mgr_buf *out, const char *key, bool value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_bool(out, value, err);
}

static inline int mgr_entry_real(mgr_buf *out, const char *key, double value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_real(out, value, err);
}

static inline int mgr_entry_text(mgr_buf *out, const char *key, const char *value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_text(out, value, err);
}

static inline int mgr_entry_nones(mgr_buf *out, const char *const *keys, size_t n, mgr_err *err)
{
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_pickle_text(out, keys[i], err));
        MGR_TRY(mgr_pickle_none(out, err));
    }
    return MGR_OK;
}

static inline int mgr_entry_dict(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_dict_open(out, err);
}

static inline int mgr_entry_empty(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(mgr_entry_dict(out, key, err));
    return mgr_pickle_dict_close(out, err);
}

static inline int mgr_entry_list(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_list_open(out, err);
}

static inline int mgr_entry_empty_list(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(mgr_entry_list(out, key, err));
    return mgr_pickle_list_close(out, err);
}

#endif
