/*
 * SHA-256 of a whole file, as text; and of a text that holds its own.
 */
#ifndef MGR_FMT_SHA256_H
#define MGR_FMT_SHA256_H

#include <stdbool.h>
#include <stddef.h>

#include "mgr/err.h"

#define MGR_SHA256_TEXT 65

/* SHA-256 of the file at `path`, as 64 hexadecimal digits. Local. */
int mgr_sha256_file(const char *path, char out[MGR_SHA256_TEXT], mgr_err *err) MGR_NODISCARD;

/* A text that ends in a line `"digest": "<64 zeros>"` and what closes it gets the SHA-256 of
 * itself, zeros included, in their place. Local. */
#define MGR_SEAL_KEY "digest"
#define MGR_SEAL_ZEROS "0000000000000000000000000000000000000000000000000000000000000000"
int mgr_digest_seal(char *text, size_t len, mgr_err *err) MGR_NODISCARD;

/* Does a sealed text have the digest that it says? `text` is not changed on return. Local. */
int mgr_digest_check(char *text, size_t len, bool *good, mgr_err *err) MGR_NODISCARD;

#endif
