/*
 * Text: a growable string, a string arena, byte sizes with units, nearest-name search.
 */
#ifndef MGR_CORE_STR_H
#define MGR_CORE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

/* A growable byte string, always NUL-terminated once something was added. Start with {0}. */
typedef struct mgr_buf {
    char *data;
    size_t len, capacity;
} mgr_buf;

int mgr_buf_add(mgr_buf *buf, const void *bytes, size_t len, mgr_err *err) MGR_NODISCARD;
int mgr_buf_text(mgr_buf *buf, const char *text, mgr_err *err) MGR_NODISCARD;
int mgr_buf_fmt(mgr_buf *buf, mgr_err *err, const char *fmt, ...) MGR_NODISCARD MGR_PRINTF(3, 4);
void mgr_buf_clear(mgr_buf *buf);

/* Strings that live until the arena is cleared. Start with {0}. */
typedef struct mgr_arena {
    struct mgr_arena_block *blocks;
} mgr_arena;

/* `bytes` zeroed bytes, 16-byte aligned, owned by the arena. */
int mgr_arena_alloc(mgr_arena *arena, void *out, size_t bytes, mgr_err *err) MGR_NODISCARD;
int mgr_arena_strndup(mgr_arena *arena, const char **out, const char *text, size_t len,
                      mgr_err *err) MGR_NODISCARD;
int mgr_arena_fmt(mgr_arena *arena, const char **out, mgr_err *err, const char *fmt,
                  ...) MGR_NODISCARD MGR_PRINTF(4, 5);
void mgr_arena_clear(mgr_arena *arena);

/* "4GiB", "512 MiB", "1.5GB", "1000" to bytes; binary and decimal units, no sign.
 * Returns false, with *out untouched, for anything else or on overflow. */
bool mgr_parse_bytes(const char *text, uint64_t *out);

/* "1.23 GiB" and the like into a caller's buffer; returns the buffer. */
const char *mgr_format_bytes(uint64_t bytes, char *out, size_t size);

/* The shortest decimal that reads back to the same double; returns out. */
#define MGR_REAL_BYTES 40
const char *mgr_shortest_real(double value, char out[MGR_REAL_BYTES]);

/* The nearest of `names` to `text` by edit distance, or NULL if none is near enough to suggest. */
const char *mgr_nearest(const char *text, const char *const *names, size_t n_names);

/* `text` with every byte that is not printable ASCII replaced by '?', cut at size-1: for messages
 * that quote names from untrusted files. Returns out. */
const char *mgr_printable(const char *text, size_t len, char *out, size_t size);

/* The code point at `text` and its bytes; 0 bytes if it is none (RFC 3629). */
size_t mgr_utf8(const unsigned char *text, size_t left, uint32_t *point);

/* `text` as one word of a shell's command, in quotes where it needs them, cut at size-1. Returns
 * out. */
const char *mgr_shell_word(const char *text, char *out, size_t size);

bool mgr_has_suffix(const char *text, const char *suffix);
bool mgr_has_prefix(const char *text, const char *prefix);

#endif
