#include "form/target.h"

#include <string.h>

const mgr_target_format *mgr_target_at(size_t idx)
{
    size_t n = 0;
    while (n < idx && mgr_target_table[n])
        n++;
    return mgr_target_table[n];
}

const mgr_target_format *mgr_target_find(const char *name)
{
    for (size_t i = 0; mgr_target_at(i); i++)
        if (strcmp(mgr_target_at(i)->name, name) == 0)
            return mgr_target_at(i);
    return NULL;
}
