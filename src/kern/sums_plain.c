/*
 * The per-neuron sums for any CPU.
 */
#include "kern/sums_body.h"

const mgr_sums_path mgr_sums_path_plain = {row, strip};
