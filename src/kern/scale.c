/*
 * By what the matrices of narrow experts are multiplied.
 */
#include <string.h>

#include "mgr/upcycle.h"

mgr_scale mgr_scale_find(const char *name)
{
    return strcmp(name, "published") == 0 ? MGR_SCALE_PUBLISHED
           : strcmp(name, "exact") == 0   ? MGR_SCALE_EXACT
                                          : MGR_SCALE_NONE;
}

/* The root of order `n` of a positive number, by Newton's method from above: of additions,
 * products and quotients alone, which are the same on every machine. */
static double root(double a, int n)
{
    double y = a > 1 ? a : 1, last;
    do {
        double power = 1;
        for (int i = 1; i < n; i++)
            power *= y;
        last = y;
        y = ((n - 1) * y + a / power) / n;
    } while (y < last);
    return last;
}

void mgr_scale_factors(mgr_scale rule, double factor, mgr_activation activation,
                       float out[MGR_MATRIX_COUNT])
{
    const int order =
        activation == MGR_ACTIVATION_GELU || activation == MGR_ACTIVATION_RELU ? 2 : 3;
    const float each = rule == MGR_SCALE_PUBLISHED ? (float)root(factor, order) : 1;
    for (int m = 0; m < MGR_MATRIX_COUNT; m++)
        out[m] = each;
    if (rule == MGR_SCALE_EXACT)
        out[MGR_MATRIX_DOWN] = (float)factor;
}

bool mgr_recipe_is_scaled(const mgr_recipe *r)
{
    for (int m = 0; m < MGR_MATRIX_COUNT; m++)
        if (r->scale[m] != 1)
            return true;
    return false;
}
