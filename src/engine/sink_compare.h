/*
 * The engine's other sink: what it makes is held against an output that is there. Where its tensors
 * lie is what its own files say, so that only their values have to be what a run would write.
 */
#ifndef MGR_ENGINE_SINK_COMPARE_H
#define MGR_ENGINE_SINK_COMPARE_H

#include "engine/engine.h"

/* What differs in one stored tensor. */
typedef struct mgr_difference {
    uint32_t stored, file;
    uint64_t tensor_at; /* where it begins in the file */
    uint64_t first;     /* byte of the tensor */
    uint64_t elements;
} mgr_difference;

typedef struct mgr_compare {
    const mgr_layout *layout;        /* of the output, as it was found */
    const mgr_source_format *format; /* that reads it */
    void *fetcher;                   /* the format's */
    mgr_open_files files;
    unsigned char *buffer;
    mgr_difference *found; /* per stored tensor; of this rank: `first` and `elements` */
} mgr_compare;

/* Bytes that a comparison takes beside the engine's. */
#define MGR_COMPARE_BYTES ((uint64_t)1 << 20)

int mgr_compare_init(mgr_compare *compare, const mgr_layout *layout,
                     const mgr_source_format *format, mgr_err *err) MGR_NODISCARD;
/* Also after an error of init. */
void mgr_compare_clear(mgr_compare *compare);

/* `context` is an mgr_compare. A sink; a difference is noted and no error. Local. */
int mgr_compare_put(void *context, const mgr_stretch *stretch, mgr_err *err) MGR_NODISCARD;

/* Those of all ranks, in the order of files and places, to rank 0: *out is an array there, to be
 * freed. Collective. */
int mgr_compare_gather(const mgr_compare *compare, mgr_comm *comm, mgr_difference **out, size_t *n,
                       mgr_err *err) MGR_NODISCARD;

#endif
