/*
 * What a stopped run wrote, for --resume. Nothing is believed because a journal says it: every
 * stretch is read back and its CRC-32 compared before the unit it is of counts as done. The others
 * are made again.
 */
#ifndef MGR_ENGINE_RECALL_H
#define MGR_ENGINE_RECALL_H

#include "engine/engine.h"

typedef struct mgr_recall {
    mgr_piece *done; /* the first piece of each unit, as mgr_plan_request wants it; on all ranks */
    size_t n_done;
    /* of this rank's share of those units, their unit MGR_NONE */
    mgr_extents read, written;
    uint32_t next_number; /* the journal's first free one */
} mgr_recall;

/* Read the journal in `folder` and look at what it names below `directory`. `sealed` says, per
 * file of the target, that it was proven in a later form and is not looked at; NULL: none.
 * Collective. */
int mgr_recall_make(mgr_recall *recall, const mgr_job *job, const char *folder,
                    const char *directory, const uint8_t *sealed, mgr_err *err) MGR_NODISCARD;

/* NULL-safe in all fields. */
void mgr_recall_clear(mgr_recall *recall);

#endif
