/*
 * The caller's locale, put aside while the library works: numbers are read and written with a point
 * in settings, in checkpoints and in messages, whatever the program has set. Of one thread.
 */
#ifndef MGR_LIB_LOCALE_H
#define MGR_LIB_LOCALE_H

#include <locale.h>

#include "mgr/err.h"

typedef struct mgr_aside {
    locale_t plain, callers;
} mgr_aside;

/* Once before and once behind; in between the caller's own code may be let in. Local. */
int mgr_aside_begin(mgr_aside *aside, mgr_err *err) MGR_NODISCARD;
void mgr_aside_end(mgr_aside *aside);
void mgr_aside_call(const mgr_aside *aside);   /* the caller's locale, for a callback */
void mgr_aside_return(const mgr_aside *aside); /* and ours again */

/* What a function that programs call is made of, which has an `err`. */
#define MGR_ASIDE(call)                                                                            \
    do {                                                                                           \
        mgr_aside aside_;                                                                          \
        MGR_TRY(mgr_aside_begin(&aside_, err));                                                    \
        const int rc_ = (call);                                                                    \
        mgr_aside_end(&aside_);                                                                    \
        return rc_;                                                                                \
    } while (0)

#endif
