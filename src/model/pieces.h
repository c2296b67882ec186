/*
 * Tensors in pieces, as torch.distributed.checkpoint stores those of a model of transformers: boxes
 * of a tensor, each under the tensor's name with its offsets behind it ("model.norm.weight@4").
 * `view` is a catalogue of the whole tensors, as if they lay in one file, and a box in it becomes
 * boxes in the pieces.
 */
#ifndef MGR_MODEL_PIECES_H
#define MGR_MODEL_PIECES_H

#include "mgr/layout.h"
#include "model/huggingface.h"

typedef struct mgr_piece {
    uint32_t stored; /* in the catalogue of the files */
    uint32_t whole;  /* in the view */
    size_t key_len;  /* of its name */
    uint64_t offset[MGR_MAX_NDIM];
} mgr_piece;

typedef struct mgr_pieces {
    mgr_catalogue view; /* file 0: config.json, as in the files; file 1: all tensors */
    mgr_huggingface hf; /* of it */
    mgr_piece *list;    /* sorted by whole */
    size_t n;
    size_t *first; /* [view.n_stored + 1]: of each tensor, in the list */
} mgr_pieces;

/* Make the view of the catalogue's pieces. Where each name begins with the name of what held the
 * model's state ("model."), that is left out. MGR_ERR_FORMAT. Local. */
int mgr_pieces_view(const mgr_catalogue *cat, mgr_pieces *pieces, mgr_err *err) MGR_NODISCARD;

/* Boxes of all pieces into `layout`, which is of a source. Local. */
int mgr_pieces_layout(mgr_layout *layout, const mgr_pieces *pieces, mgr_err *err) MGR_NODISCARD;

void mgr_pieces_clear(mgr_pieces *pieces);

#endif
