/*
 * JSON in and out, a thin layer over jansson: strict parsing with a place in the message, and
 * deterministic text.
 */
#ifndef MGR_FMT_JSON_H
#define MGR_FMT_JSON_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "core/str.h"
#include "mgr/err.h"

/* Once, before any other call: what jansson allocates counts as ours (core/mem.h). */
void mgr_json_count_memory(void);

/* Parse one JSON array or object of `len` bytes into *out; the caller releases it with
 * json_decref. Refused: duplicate keys, "\u0000", integers outside int64, reals outside double,
 * NaN, comments, anything behind the value but white space, nesting deeper than 2048, and a text
 * that reads as a marked NaN or infinity (see below).
 * Errors: MGR_ERR_FORMAT with `name` and the byte, MGR_ERR_NOMEM. Local. */
int mgr_json_parse(json_t **out, const char *name, const char *text, size_t len,
                   mgr_err *err) MGR_NODISCARD;

/* The same, but NaN, Infinity and -Infinity, which Python writes, are taken: as texts of
 * MGR_JSON_BARE and the word, which mgr_json_dump writes back as they were. */
#define MGR_JSON_BARE "\x01"
int mgr_json_parse_python(json_t **out, const char *name, const char *text, size_t len,
                          mgr_err *err) MGR_NODISCARD;

/* The same for a text that begins at byte `base` of the file `name`. */
int mgr_json_parse_at(json_t **out, const char *name, uint64_t base, const char *text, size_t len,
                      mgr_err *err) MGR_NODISCARD;

/* Append `value` as JSON text. Members keep the order in which they were inserted; reals are the
 * shortest text that reads back to the same double and always have a point or an exponent, as
 * Python prints them; UTF-8 stays as it is. With `indent` > 0: one member per line and a newline
 * at the end; with 0: no white space at all. Errors: MGR_ERR_NOMEM, and MGR_ERR_INTERNAL for what
 * JSON cannot say. Local. */
int mgr_json_dump(const json_t *value, int indent, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* Append `text` (UTF-8) as a JSON string with its quotes. Local. */
int mgr_json_text(const char *text, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif
