#include "mgr/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One row per code; the enum's order. */
static const struct {
    int code, exit_status;
    const char *name, *text;
} table[] = {
    {MGR_OK, 0, "MGR_OK", "no error"},
    {MGR_ERR_USAGE, 64, "MGR_ERR_USAGE", "wrong command line"},
    {MGR_ERR_CONFIG, 78, "MGR_ERR_CONFIG", "wrong configuration"},
    {MGR_ERR_FORMAT, 65, "MGR_ERR_FORMAT", "damaged or contradictory input"},
    {MGR_ERR_UNSUPPORTED, 65, "MGR_ERR_UNSUPPORTED", "input of a kind that is not supported"},
    {MGR_ERR_NOT_FOUND, 66, "MGR_ERR_NOT_FOUND", "input not found"},
    {MGR_ERR_EXISTS, 73, "MGR_ERR_EXISTS", "output exists"},
    {MGR_ERR_CREATE, 73, "MGR_ERR_CREATE", "output cannot be created"},
    {MGR_ERR_SPACE, 73, "MGR_ERR_SPACE", "output does not fit"},
    {MGR_ERR_IO, 74, "MGR_ERR_IO", "input/output error"},
    {MGR_ERR_NOMEM, 71, "MGR_ERR_NOMEM", "out of memory"},
    {MGR_ERR_MPI, 71, "MGR_ERR_MPI", "MPI error"},
    {MGR_ERR_INTERRUPTED, 75, "MGR_ERR_INTERRUPTED", "stopped by a signal"},
    {MGR_ERR_INTERNAL, 70, "MGR_ERR_INTERNAL", "internal error"},
};

static size_t find(int code)
{
    const size_t n = sizeof table / sizeof table[0];
    for (size_t i = 0; i < n; i++)
        if (table[i].code == code)
            return i;
    return n - 1;
}

const char *mgr_code_name(int code)
{
    return table[find(code)].name;
}

const char *mgr_code_text(int code)
{
    return table[find(code)].text;
}

int mgr_code_exit(int code)
{
    return table[find(code)].exit_status;
}

int mgr_fail(mgr_err *err, mgr_code code, const char *fmt, ...)
{
    if (err && err->code == MGR_OK) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->msg, sizeof err->msg, fmt, args);
        va_end(args);
        err->code = (int32_t)code;
    }
    return (int)code;
}

int mgr_fail_errno(mgr_err *err, mgr_code code, int sys, const char *fmt, ...)
{
    if (err && err->code == MGR_OK) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->msg, sizeof err->msg, fmt, args);
        va_end(args);
        const size_t used = strlen(err->msg);
        snprintf(err->msg + used, sizeof err->msg - used, ": %s", strerror(sys));
        err->code = (int32_t)code;
        err->sys = sys;
    }
    return (int)code;
}

int mgr_wrap(mgr_err *err, const char *fmt, ...)
{
    char inner[sizeof err->msg];
    memcpy(inner, err->msg, sizeof inner);
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, args);
    va_end(args);
    const size_t used = strlen(err->msg);
    /* a cut tail is better than no message: the outermost context comes first */
    if (used + 3 < sizeof err->msg) {
        memcpy(err->msg + used, ": ", 3);
        const size_t room = sizeof err->msg - used - 3;
        const size_t len = strnlen(inner, sizeof inner - 1);
        memcpy(err->msg + used + 2, inner, len < room ? len : room);
        err->msg[used + 2 + (len < room ? len : room)] = '\0';
    }
    return err->code;
}

int mgr_hint(mgr_err *err, const char *fmt, ...)
{
    if (err->hint[0] == '\0') {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->hint, sizeof err->hint, fmt, args);
        va_end(args);
    }
    return err->code;
}
