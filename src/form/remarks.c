#include "form/remarks.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"

#define MAX_LINE 2048

/* A copy that may be printed anywhere: what files say can hold escape codes or be no UTF-8. */
static int own(mgr_remarks *remarks, const char **text, mgr_err *err)
{
    char shown[MAX_LINE];
    if (!*text)
        return MGR_OK;
    mgr_printable(*text, strlen(*text), shown, sizeof shown);
    return mgr_arena_strndup(&remarks->arena, text, shown, strlen(shown), err);
}

int mgr_remarks_add(mgr_remarks *remarks, const mgr_remark *remark, mgr_err *err)
{
    mgr_remark n = *remark;
    MGR_TRY(own(remarks, &n.field, err));
    MGR_TRY(own(remarks, &n.was, err));
    MGR_TRY(own(remarks, &n.now, err));
    MGR_TRY(own(remarks, &n.why, err));
    MGR_TRY(mgr_grow(&remarks->list, &remarks->cap, remarks->n + 1, sizeof n, err));
    remarks->list[remarks->n++] = n;
    return MGR_OK;
}

int mgr_remarks_say(mgr_remarks *remarks, mgr_remark_kind kind, mgr_err *err, const char *fmt, ...)
{
    char text[MAX_LINE];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    const mgr_remark remark = kind == MGR_REMARK_NEXT ? (mgr_remark){.kind = kind, .now = text}
                                                      : (mgr_remark){.kind = kind, .why = text};
    return mgr_remarks_add(remarks, &remark, err);
}

size_t mgr_remarks_count(const mgr_remarks *remarks, mgr_remark_kind kind)
{
    size_t n = 0;
    for (size_t i = 0; i < remarks->n; i++)
        n += remarks->list[i].kind == kind;
    return n;
}

void mgr_remarks_clear(mgr_remarks *remarks)
{
    mgr_free(remarks->list);
    mgr_arena_clear(&remarks->arena);
    *remarks = (mgr_remarks){0};
}

const char *mgr_remark_name(mgr_remark_kind kind)
{
    static const char *const names[MGR_REMARK_KINDS] = {"carried", "set",     "altered", "dropped",
                                                        "unknown", "warning", "next"};
    return names[kind];
}
