/*
 * What clang's analyzer cannot see across files: reporting a failure gives a nonzero code, so the
 * code after an MGR_TRY runs only if out-parameters were written. Included by force, by
 * `lint.sh tidy`; a program never sees it.
 */
#ifndef MGR_LINT_ANALYZER_H
#define MGR_LINT_ANALYZER_H

#include "mgr/err.h"

#define mgr_fail(err, code, ...) ((void)(mgr_fail)((err), (code), __VA_ARGS__), (int)(code))
#define mgr_fail_errno(err, code, ...)                                                             \
    ((void)(mgr_fail_errno)((err), (code), __VA_ARGS__), (int)(code))
#define mgr_wrap(...) ((void)(mgr_wrap)(__VA_ARGS__), (int)MGR_ERR_INTERNAL)
#define mgr_hint(...) ((void)(mgr_hint)(__VA_ARGS__), (int)MGR_ERR_INTERNAL)

#endif
