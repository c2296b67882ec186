#include "lib/locale.h"

int mgr_aside_begin(mgr_aside *aside, mgr_err *err)
{
    aside->plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!aside->plain)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory for a locale");
    aside->callers = uselocale(aside->plain);
    return MGR_OK;
}

void mgr_aside_end(mgr_aside *aside)
{
    uselocale(aside->callers);
    freelocale(aside->plain);
}

void mgr_aside_call(const mgr_aside *aside)
{
    uselocale(aside->callers);
}

void mgr_aside_return(const mgr_aside *aside)
{
    uselocale(aside->plain);
}
