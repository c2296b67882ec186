/*
 * Layouts: where the rows and columns of logical tensors lie in stored tensors.
 *
 * A layout function walks the files and tensor names of a format and puts boxes into a layout: a
 * box says that rows r0..r1, columns c0..c1 of a logical tensor are rows and columns of one stored
 * tensor. The same function serves a source, where the stored tensors must be found in a
 * catalogue, and a target, where they are declared. It is pure: no I/O, no MPI, no allocation
 * outside the layout.
 */
#ifndef MGR_LAYOUT_H
#define MGR_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/catalogue.h"
#include "mgr/err.h"
#include "mgr/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A stored tensor is seen as a matrix of all leading axes by the last one; a 1-D tensor of n
 * elements is n rows of one column. A 1-D logical tensor runs along the last axis: its rows are
 * elements of the stored tensor, whatever axes that has. */
typedef struct mgr_box {
    uint32_t tensor;                 /* logical tensor */
    uint32_t stored;                 /* stored tensor of the layout's catalogue */
    uint32_t copy;                   /* 0 for the first place, k for the k-th replica of it */
    uint64_t row, col, rows, cols;   /* in the logical tensor */
    uint64_t stored_row, stored_col; /* the same corner in the stored tensor */
    /* Elements from one stored row to the next; 0: as the stored tensor has it. Where a tensor's
     * memory is meant as another matrix, the rows and columns are that one's. */
    uint64_t row_stride;
    bool transposed; /* logical rows are stored columns: old GroupedMLP, transformer/moe/experts.py
                      */
} mgr_box;

/* Rows of a stored tensor that no logical tensor owns (vocabulary padding); written as zeros. */
typedef struct mgr_fill {
    uint32_t stored;
    uint64_t row, rows;
} mgr_fill;

/* An entry of a declared file that is no tensor: Megatron's `_extra_state`, of which there is never
 * anything to keep. A container writes it as nothing (None), or leaves it out. */
typedef struct mgr_object {
    const char *name; /* owned by the catalogue's arena */
    uint32_t file;
} mgr_object;

/* Two declared tensors that must have one element type, although no logical tensor lies in both. */
typedef struct mgr_type_link {
    uint32_t a, b;
} mgr_type_link;

typedef struct mgr_layout {
    const mgr_tensors *tensors; /* borrowed */
    mgr_catalogue *cat;         /* borrowed */
    bool declare;               /* add stored tensors to cat, or find them there */
    mgr_dtype dtype; /* the model's; of a source, after finish: what most elements have */
    /* [tensors->n] Element type of each logical tensor. Of a source: as it is stored. Of a target:
     * `dtype` at first; whoever wants another one sets it before there are boxes. */
    mgr_dtype *types;
    /* Of a source whose float32 masters are read: the type that each weight itself has there,
     * MGR_DTYPE_NONE where it is the same tensor. NULL of any other. */
    mgr_dtype *copies;
    mgr_type_link *links; /* targets only */
    size_t n_links, cap_links;
    mgr_box *boxes; /* after finish: sorted by tensor, copy, row, col */
    size_t n_boxes, cap_boxes;
    mgr_fill *fills; /* targets only */
    size_t n_fills, cap_fills;
    mgr_object *objects; /* targets only */
    size_t n_objects, cap_objects;
    size_t *first_box; /* [tensors->n + 1], after finish */
    uint32_t *in_file; /* stored tensors by file, in their order; targets only, after finish: ... */
    size_t *first_in_file, n_in_file; /* ... of file f from [f] to [f + 1], for f < n_in_file */
    uint8_t *used;                    /* per stored tensor of cat: found so far */
    struct mgr_name_index *index;
    bool transposed;     /* some box is: work on whole matrices pays */
    int32_t *file_owner; /* per file: expert-parallel rank, -1 for shared weights; may be NULL */
} mgr_layout;

/* Start a layout over `cat`: with `declare` it grows, else its tensors are looked up. `dtype` is
 * the model's element type; of a source what is said of it, until finish has seen all. Local. */
int mgr_layout_init(mgr_layout *layout, const mgr_tensors *tensors, mgr_catalogue *cat,
                    bool declare, mgr_dtype dtype, mgr_err *err) MGR_NODISCARD;
void mgr_layout_clear(mgr_layout *layout);

/* Declare or find the tensor `name` of `file` with this shape; *stored is its index. A missing one
 * is MGR_ERR_FORMAT, as is another shape than `shape`. What is declared gets its element type in
 * mgr_layout_finish: that of the logical tensors in it. Local. */
int mgr_layout_tensor(mgr_layout *layout, uint32_t file, const char *name, uint32_t ndim,
                      const uint64_t *shape, uint32_t *stored, mgr_err *err) MGR_NODISCARD;

/* Nonzero if the catalogue has it; for tensors that a format may or may not store. */
bool mgr_layout_has(const mgr_layout *layout, uint32_t file, const char *name);

/* Add a box; empty boxes are dropped. Local. */
int mgr_layout_box(mgr_layout *layout, const mgr_box *box, mgr_err *err) MGR_NODISCARD;

/* Say that these rows of a declared tensor are padding; no effect on a source. Local. */
int mgr_layout_fill(mgr_layout *layout, uint32_t stored, uint64_t row, uint64_t rows,
                    mgr_err *err) MGR_NODISCARD;

/* Declare an entry without content; no effect on a source. Local. */
int mgr_layout_object(mgr_layout *layout, uint32_t file, const char *name,
                      mgr_err *err) MGR_NODISCARD;

/* Say that two declared tensors must have one element type: chunks of one key. Local. */
int mgr_layout_link(mgr_layout *layout, uint32_t stored_a, uint32_t stored_b,
                    mgr_err *err) MGR_NODISCARD;

/* Put the boxes of a finished `from` into `layout`: its tensor i is tensor place[i] here, MGR_NONE
 * for one that is left out, its stored tensors follow `first_stored` others of the catalogue here.
 * copies[i] counts how often tensor i is there: 0 at first. Local. */
int mgr_layout_join(mgr_layout *layout, const mgr_layout *from, const uint32_t *place,
                    uint32_t first_stored, uint32_t *copies, mgr_err *err) MGR_NODISCARD;

/* Put the boxes of a finished `from` over the same catalogue into `layout`: its tensor i is a part
 * of tensor place[i] here, from row[i], col[i] of it on; MGR_NONE for one that is left out. Local.
 */
int mgr_layout_compose(mgr_layout *layout, const mgr_layout *from, const uint32_t *place,
                       const uint64_t *row, const uint64_t *col, mgr_err *err) MGR_NODISCARD;

/* Sort, index, and prove: every element of every logical tensor lies in exactly one box of copy 0,
 * every other copy lies inside it, no stored tensor of the catalogue is left over. The types of a
 * target are settled: what is stored in one tensor has one type, the narrowest that holds all of
 * their values. Errors: MGR_ERR_FORMAT naming the tensor (a source), MGR_ERR_INTERNAL (a target).
 * Local. */
int mgr_layout_finish(mgr_layout *layout, mgr_err *err) MGR_NODISCARD;

/* The *n stored tensors of a target's file, in the catalogue's order; valid as long as the layout
 * is finished and no other is added. Pure. */
const uint32_t *mgr_layout_in_file(const mgr_layout *layout, uint32_t file, size_t *n);

/* The type of the weight as the checkpoint has it, whatever is read in its place. Pure. */
mgr_dtype mgr_layout_type(const mgr_layout *layout, uint32_t tensor);

/* Bytes of one row, and of all of a logical tensor in its element type. Pure. */
uint64_t mgr_layout_row_bytes(const mgr_layout *layout, uint32_t tensor);
uint64_t mgr_layout_tensor_bytes(const mgr_layout *layout, uint32_t tensor);
/* Of all tensors. Pure. */
uint64_t mgr_layout_bytes(const mgr_layout *layout);

/* Byte position of element (row, col) of the box's logical tensor in its file. Pure. */
uint64_t mgr_box_offset(const mgr_layout *layout, const mgr_box *box, uint64_t row, uint64_t col);

#ifdef __cplusplus
}
#endif
#endif
