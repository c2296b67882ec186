/*
 * How many neurons change, by layer and by matrix.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "mgr/upcycle.h"

uint32_t mgr_selected_count(double ratio, uint32_t n_neurons)
{
    if (!(ratio > 0))
        return 0;
    if (ratio >= 1)
        return n_neurons;
    return (uint32_t)(ratio * n_neurons);
}

/* A number within 0 .. 1, and the blanks around it. */
static bool take_share(const char **at, double *out)
{
    char *end = NULL;
    while (**at == ' ')
        (*at)++;
    if (!isdigit((unsigned char)**at) && **at != '.')
        return false;
    *out = strtod(*at, &end);
    if (end == *at || memchr(*at, 'x', (size_t)(end - *at)))
        return false;
    *at = end;
    while (**at == ' ')
        (*at)++;
    return *out >= 0 && *out <= 1;
}

/* Numbers with commas between them: exactly `n`. */
static bool take_list(const char *at, double *out, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++, at++)
        if (!take_share(&at, &out[i]) || *at != (i + 1 < n ? ',' : '\0'))
            return false;
    return true;
}

/* "a to b": layer l of L has a + (b - a) * l / (L - 1). */
static bool take_slope(const char *at, double *out, uint64_t n)
{
    double first, last;
    if (!take_share(&at, &first) || strncmp(at, "to", 2) != 0)
        return false;
    at += 2;
    if (!take_share(&at, &last) || *at != '\0')
        return false;
    for (uint64_t l = 0; l < n; l++)
        out[l] = n > 1 ? first + (last - first) * (double)l / (double)(n - 1) : first;
    return true;
}

const char *mgr_selected_counts(const mgr_config *c, uint64_t layers, uint32_t width, uint32_t *out)
{
    double by_layer[MGR_MAX_LAYERS], by_matrix[MGR_MATRIX_COUNT] = {1, 1, 1};
    const char *const of_layers = c->upcycle.layer_ratio, *const of_matrices =
                                                              c->upcycle.matrix_ratio;
    for (uint64_t l = 0; l < layers; l++)
        by_layer[l] = c->upcycle.ratio;
    if (of_layers[0] && !take_slope(of_layers, by_layer, layers) &&
        !take_list(of_layers, by_layer, layers))
        return "upcycle.layer_ratio";
    if (of_matrices[0] && !take_list(of_matrices, by_matrix, MGR_MATRIX_COUNT))
        return "upcycle.matrix_ratio";
    for (uint64_t l = 0; l < layers; l++)
        for (int m = 0; m < MGR_MATRIX_COUNT; m++) {
            const double ratio = by_layer[l] * by_matrix[m];
            out[l * MGR_MATRIX_COUNT + (unsigned)m] = mgr_selected_count(ratio, width);
            if (ratio > 0 && mgr_selected_count(ratio, width) == 0)
                return of_layers[0] ? "upcycle.layer_ratio" : "upcycle.ratio";
        }
    return NULL;
}
