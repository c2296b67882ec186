/*
 * Rows of a viewed checkpoint's tensors, by whatever boxes they lie in. Serial, without MPI.
 *
 *     mgr_rows rows;
 *     MGR_TRY(mgr_rows_open(&rows, &view, err));
 *     rc = mgr_rows_logical(&rows, tensor, 0, 16, out, err);
 *     mgr_rows_close(&rows);
 */
#ifndef MGR_LOOK_ROWS_H
#define MGR_LOOK_ROWS_H

#include <stdint.h>

#include "look/view.h"

typedef struct mgr_rows {
    const mgr_view *view;
    unsigned char *part; /* one stretch of a file */
    size_t part_bytes;
    void *fetcher; /* the format's, for what is compressed */
    int fd;        /* of `file`; -1: none is open */
    uint32_t file;
} mgr_rows;

/* `view` is borrowed. Close it also after an error. Local. */
int mgr_rows_open(mgr_rows *rows, const mgr_view *view, mgr_err *err) MGR_NODISCARD;
void mgr_rows_close(mgr_rows *rows);

/* Rows [row, row+n) of a logical tensor in its own element type (view->layout.types), one behind
 * the other, into `out`. Of copies the first is read. Errors: MGR_ERR_IO, MGR_ERR_FORMAT. Local. */
int mgr_rows_logical(mgr_rows *rows, uint32_t tensor, uint64_t row, uint64_t n, void *out,
                     mgr_err *err) MGR_NODISCARD;

/* The same of a stored tensor by itself, all leading axes taken for one. Errors: also
 * MGR_ERR_UNSUPPORTED where it does not lie row by row, or is of a type without a size. Local. */
int mgr_rows_stored(mgr_rows *rows, uint32_t stored, uint64_t row, uint64_t n, void *out,
                    mgr_err *err) MGR_NODISCARD;

/* Elements of one row of a stored tensor, and its rows: [n] is n rows of one. Pure. */
uint64_t mgr_stored_columns(const mgr_stored *stored);
uint64_t mgr_stored_rows(const mgr_stored *stored);

#endif
