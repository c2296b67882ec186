/*
 * What becomes of the fields beside the tensors - Megatron's args, config.json - and what people
 * should know of the output: one list for each run, made while it is planned, printed in short and
 * kept whole in the manifest.
 */
#ifndef MGR_FORM_REMARKS_H
#define MGR_FORM_REMARKS_H

#include <stddef.h>

#include "core/str.h"
#include "mgr/err.h"

typedef enum mgr_remark_kind {
    MGR_REMARK_CARRIED, /* as the source has it */
    MGR_REMARK_SET,     /* the source does not have it */
    MGR_REMARK_ALTERED, /* the source has another value */
    MGR_REMARK_DROPPED, /* the output does not have it */
    MGR_REMARK_UNKNOWN, /* a field that no list of ours names, at a value that means nothing */
    MGR_REMARK_WARNING, /* what a consumer will not do, what looks odd: `why` is the sentence */
    MGR_REMARK_NEXT,    /* a line of the way on, for a shell or Python: `now` */
    MGR_REMARK_KINDS
} mgr_remark_kind;

/* Texts for people; NULL where there is nothing to say. */
typedef struct mgr_remark {
    mgr_remark_kind kind;
    const char *field;     /* "rotary_base" */
    const char *was, *now; /* values, as they are spelt in the source and in the output */
    const char *why;
} mgr_remark;

typedef struct mgr_remarks {
    mgr_remark *list;
    size_t n, cap;
    mgr_arena arena; /* owns every text */
} mgr_remarks;

/* Copy `remark`; what is not printable in it becomes '?'. Local. */
int mgr_remarks_add(mgr_remarks *remarks, const mgr_remark *remark, mgr_err *err) MGR_NODISCARD;

/* A warning or a line of the way on. Local. */
int mgr_remarks_say(mgr_remarks *remarks, mgr_remark_kind kind, mgr_err *err, const char *fmt,
                    ...) MGR_NODISCARD MGR_PRINTF(4, 5);

size_t mgr_remarks_count(const mgr_remarks *remarks, mgr_remark_kind kind);
void mgr_remarks_clear(mgr_remarks *remarks);

/* "carried", "set", "altered", "dropped", "unknown", "warning", "next". */
const char *mgr_remark_name(mgr_remark_kind kind);

#endif
