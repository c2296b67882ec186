/*
 * Planted faults, in the programs that tests run (io/fault.c). The environment variable MGR_FAULT
 * holds "call:k[:errno]" (the k-th such call of a rank fails, once; default EIO), "call:k:kill" or
 * "call:k:term", which sends the rank that signal; calls: pread, pwrite, fsync, rename, create,
 * space, name, key, probe, thread, lustre, and phase: no call, but the k-th step of a run
 * (run/write.c). "space:k" makes the file system look full, "lustre:1" like that one, "name:k"
 * misspells the k-th tensor of the target, "key:k" only in the plan that it is held against.
 * "rank:r," before it limits the fault to one rank; "nodes:n," before that, or alone, pretends that
 * the ranks go round so many nodes.
 */
#ifndef MGR_IO_FAULT_H
#define MGR_IO_FAULT_H

#include <stdint.h>

/* Nonzero (an errno) if this call is to fail now. In what is installed it is always 0. */
int mgr_fault(const char *call);
void mgr_fault_set_rank(int rank);
/* The nodes to pretend, or 0. In what is installed it is always 0. */
uint32_t mgr_fault_nodes(void);

#endif
