/*
 * Errors: one plain struct that can be sent between ranks as bytes.
 *
 * A function that can fail returns an mgr_code (0 is success) and, if it fails, fills the mgr_err
 * it was given. The first failure is kept. Messages are whole where they are made; only where a
 * callee cannot know a place that the reader needs (which chunk of a file) its caller adds it with
 * mgr_wrap.
 * Wording: lower case, no full stop, names quoted, the cause after a colon (CONTRIBUTING.md).
 */
#ifndef MGR_ERR_H
#define MGR_ERR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MGR_NODISCARD __attribute__((warn_unused_result))
#define MGR_PRINTF(fmt_idx, arg_idx) __attribute__((format(printf, fmt_idx, arg_idx)))
#else
#define MGR_NODISCARD
#define MGR_PRINTF(fmt_idx, arg_idx)
#endif

/* Stable numbers with gaps for growth. */
typedef enum mgr_code {
    MGR_OK = 0,
    MGR_ERR_USAGE = 10,        /* wrong command line */
    MGR_ERR_CONFIG = 20,       /* wrong configuration file or value */
    MGR_ERR_FORMAT = 30,       /* the input is damaged or contradicts itself */
    MGR_ERR_UNSUPPORTED = 40,  /* the input is well formed, and of a kind we refuse by name */
    MGR_ERR_NOT_FOUND = 50,    /* the input is not there */
    MGR_ERR_EXISTS = 60,       /* the output is there already */
    MGR_ERR_CREATE = 61,       /* the output cannot be created */
    MGR_ERR_SPACE = 62,        /* the output does not fit on the file system */
    MGR_ERR_IO = 70,           /* reading or writing failed */
    MGR_ERR_NOMEM = 80,        /* memory could not be had */
    MGR_ERR_MPI = 90,          /* the MPI library failed */
    MGR_ERR_INTERRUPTED = 100, /* a signal asked us to stop */
    MGR_ERR_INTERNAL = 110     /* our own mistake */
} mgr_code;

typedef struct mgr_err {
    int32_t code; /* mgr_code */
    int32_t sys;  /* errno or MPI error class, 0 if there is none */
    int32_t rank; /* the rank that failed, -1 until ranks have agreed */
    int32_t pad;
    char msg[640];
    char hint[200];
} mgr_err;

#define MGR_ERR_INIT                                                                               \
    {                                                                                              \
        0, 0, -1, 0, {0},                                                                          \
        {                                                                                          \
            0                                                                                      \
        }                                                                                          \
    }

/* Record a failure, if `err` holds none yet, and return `code`. Local. */
int mgr_fail(mgr_err *err, mgr_code code, const char *fmt, ...) MGR_PRINTF(3, 4);

/* Like mgr_fail, with ": <strerror(sys)>" behind the text and `sys` recorded. Local. */
int mgr_fail_errno(mgr_err *err, mgr_code code, int sys, const char *fmt, ...) MGR_PRINTF(4, 5);

/* Put "<text>: " before a recorded failure and return its code. Local. */
int mgr_wrap(mgr_err *err, const char *fmt, ...) MGR_PRINTF(2, 3);

/* Name one action that would help; the first hint is kept. Returns err->code. Local. */
int mgr_hint(mgr_err *err, const char *fmt, ...) MGR_PRINTF(2, 3);

/* Symbolic name ("MGR_ERR_FORMAT") and one-line text of a code; never NULL. Local. */
const char *mgr_code_name(int code);
const char *mgr_code_text(int code);

/* Exit status of a code, after sysexits(3): 0, 64, 65, 66, 70, 71, 73, 74, 75 or 78. Local. */
int mgr_code_exit(int code);

/* The only macros here that hide a return: forward a failure unchanged. */
#define MGR_TRY(expr)                                                                              \
    do {                                                                                           \
        const int mgr_try_rc_ = (expr);                                                            \
        if (mgr_try_rc_ != MGR_OK)                                                                 \
            return mgr_try_rc_;                                                                    \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
