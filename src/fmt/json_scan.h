/*
 * JSON that is read as it passes: no tree, a window of the file and one string at a time. For texts
 * as long as a model has tensors; small files are parsed whole (fmt/json.h).
 *
 * The caller walks: an opening bracket, then members or elements until there is no more.
 */
#ifndef MGR_FMT_JSON_SCAN_H
#define MGR_FMT_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "io/reader.h"

#define MGR_JSON_WINDOW 16384

typedef struct mgr_json_scan {
    const mgr_reader *reader;
    uint64_t at, end; /* the next byte, and that behind the text */
    uint64_t window_at;
    size_t window_len;
    mgr_buf text; /* the string read last, decoded */
    size_t keep;  /* most bytes of a string that are kept; it is checked to its end */
    bool cut;     /* the string read last was longer */
    bool fresh;   /* nothing stands yet behind the bracket opened last */
    mgr_err *err;
    unsigned char window[MGR_JSON_WINDOW];
} mgr_json_scan;

typedef enum mgr_json_kind {
    MGR_JSON_OBJECT,
    MGR_JSON_ARRAY,
    MGR_JSON_STRING,
    MGR_JSON_NUMBER,
    MGR_JSON_WORD /* true, false, null, or nothing that JSON has */
} mgr_json_kind;

/* The bytes from `from` to `end` of the reader, which outlives the scan. */
void mgr_json_scan_start(mgr_json_scan *s, const mgr_reader *reader, uint64_t from, uint64_t end,
                         mgr_err *err);
void mgr_json_scan_stop(mgr_json_scan *s);

/* All below: MGR_ERR_FORMAT with the byte for what is no JSON, and errors of reading. Local. */

/* What begins at the next byte that is no white space. */
int mgr_json_scan_kind(mgr_json_scan *s, mgr_json_kind *kind) MGR_NODISCARD;

/* '{' or '['. */
int mgr_json_scan_open(mgr_json_scan *s, char bracket) MGR_NODISCARD;

/* The next key and its colon, the key in s->text; or the closing bracket, and *more is false. */
int mgr_json_scan_member(mgr_json_scan *s, bool *more) MGR_NODISCARD;
/* The same of an array. */
int mgr_json_scan_element(mgr_json_scan *s, bool *more) MGR_NODISCARD;

int mgr_json_scan_string(mgr_json_scan *s) MGR_NODISCARD;

/* A number; *whole is false if it has a point or an exponent, and then *out is not set. Whole ones
 * outside int64 are refused. */
int mgr_json_scan_number(mgr_json_scan *s, int64_t *out, bool *whole) MGR_NODISCARD;

/* One value of any kind, checked. Keys that occur twice in it go unseen. */
int mgr_json_scan_skip(mgr_json_scan *s) MGR_NODISCARD;

/* Only white space is left. */
int mgr_json_scan_end(mgr_json_scan *s) MGR_NODISCARD;

#endif
