/*
 * The ledger of a run, provenance.h5: where every expert came from, and what each rank did when.
 *
 * With M layers that have experts, E experts, F neurons, K index sets of an expert (1 or 3), B
 * bytes of F bits, P ranks and N events:
 *
 *   run, config, sources            texts: JSON, the effective configuration as YAML, JSON
 *   layers [M]                      which layers they are
 *   experts/selected, kept [M,E,3]  per matrix: |S|, the share of neurons that S leaves alone
 *   experts/mean, std [M,E,3]       the moments that the draws had (NaN: none)
 *   experts/crc32 [M,E,3]           of the matrix, row-major in the target's type in any layout
 *   experts/overlap [M,E,E]         of the dense neurons that the first keeps, the share that the
 *                                   second keeps, too; over all matrices
 *   experts/mask [M,E,K,B]          the sets S, of the expert's neurons; bit i of byte j is 8j+i
 *   experts/dense_of [M,E,F]        with shuffle: the dense neuron of each expert neuron
 *   dense/mean, std [M,3]           of the whole dense matrices
 *   router/mean, std, min, max [M], norm [M,E]
 *   timeline/phases, rank, phase, group, start, seconds, bytes_read, bytes_written [N]
 *   timeline/peak_rss [P]
 *
 * What has experts is there if the run made them. The timeline tells runs apart; all else is the
 * same for any number of ranks.
 */
#ifndef MGR_RUN_LEDGER_H
#define MGR_RUN_LEDGER_H

#include "engine/job.h"

#define MGR_LEDGER_NAME "provenance.h5"

/* At most so many bytes it will have. Pure. */
uint64_t mgr_ledger_bytes(const mgr_job *job);

/* Write the ledger into `directory`: rank 0 makes the file, and up to 16 ranks write what is of
 * their layers; then all read back what they wrote. The engine is done, and `settled` is when its
 * settling began. Collective.
 */
int mgr_ledger_write(mgr_job *job, const char *directory, double settled,
                     mgr_err *err) MGR_NODISCARD;

#endif
