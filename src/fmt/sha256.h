/*
 * SHA-256 of a whole file, as text.
 */
#ifndef MGR_FMT_SHA256_H
#define MGR_FMT_SHA256_H

#include "mgr/err.h"

#define MGR_SHA256_TEXT 65

/* SHA-256 of the file at `path`, as 64 hexadecimal digits. Local. */
int mgr_sha256_file(const char *path, char out[MGR_SHA256_TEXT], mgr_err *err) MGR_NODISCARD;

#endif
