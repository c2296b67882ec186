/*
 * The catalogue of a source: which tensors lie where in which files.
 *
 * A format's reader fills it from headers alone; no tensor byte is read. It is plain data, so
 * ranks can read different files and exchange what they found.
 */
#ifndef MGR_CATALOGUE_H
#define MGR_CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/dtype.h"
#include "mgr/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MGR_MAX_NDIM 8
#define MGR_NONE UINT32_MAX

/* A stored tensor's offset from here on is no place in its file: the bytes are compressed, and only
 * the format's reader can fetch them. */
#define MGR_VIRTUAL_OFFSET (UINT64_C(1) << 62)

/* One tensor in a file. Element (i0, i1, ...) lies at byte
 * offset + dtype size * (i0*stride[0] + i1*stride[1] + ...). One without axes is a single element;
 * its shape[0] and stride[0] are 1. */
typedef struct mgr_stored {
    const char *name; /* borrowed from the catalogue */
    uint32_t file;    /* index into files */
    uint32_t record;  /* index into records, MGR_NONE if the format has no checksummed records */
    mgr_dtype dtype;
    uint32_t ndim;
    uint64_t shape[MGR_MAX_NDIM];
    uint64_t stride[MGR_MAX_NDIM]; /* in elements */
    uint64_t offset;               /* of element 0, in bytes from the start of the file */
} mgr_stored;

/* A byte range of a file that carries a CRC-32: a zip member. */
typedef struct mgr_record {
    const char *name;
    uint32_t file;
    uint32_t crc32;
    uint64_t offset, size;
} mgr_record;

/* What a file says about itself beside tensors: Megatron's args, flattened to scalars. */
typedef enum mgr_attr_kind {
    MGR_ATTR_NULL,
    MGR_ATTR_BOOL,
    MGR_ATTR_INT,
    MGR_ATTR_REAL,
    MGR_ATTR_TEXT,    /* a string */
    MGR_ATTR_SYMBOL,  /* text: a dtype ("torch.bfloat16") or an enum ("Class(value)") */
    MGR_ATTR_LITERAL, /* text: a list, tuple or dict of all that, as Python spells it */
    MGR_ATTR_OTHER    /* present, but none of these; text names its type */
} mgr_attr_kind;

typedef struct mgr_attr {
    const char *key; /* "args.num_layers", "checkpoint_version", "iteration" */
    uint32_t file;
    mgr_attr_kind kind;
    int64_t i; /* BOOL and INT */
    double r;  /* REAL */
    const char *text;
} mgr_attr;

typedef struct mgr_file {
    const char *path; /* as it is opened */
    uint64_t bytes;
    uint64_t modified; /* nanoseconds, of a source that was read from a file; else 0 */
    uint64_t inode;    /* likewise; 0 where the file system makes them up anew for each mount */
} mgr_file;

/* Entries that are skipped by design and counted: optimizer, rng, extra state, ... */
typedef enum mgr_skip {
    MGR_SKIP_OPTIMIZER,
    MGR_SKIP_RNG,
    MGR_SKIP_EXTRA_STATE,
    MGR_SKIP_OTHER,
    MGR_SKIP_COUNT
} mgr_skip;

typedef struct mgr_catalogue {
    mgr_file *files;
    size_t n_files, cap_files;
    mgr_stored *stored;
    size_t n_stored, cap_stored;
    mgr_record *records;
    size_t n_records, cap_records;
    mgr_attr *attrs;
    size_t n_attrs, cap_attrs;
    uint64_t skipped[MGR_SKIP_COUNT];
    struct mgr_arena *arena; /* owns every string; made on first use */
} mgr_catalogue;

/* Each adds one entry, copies the strings, and returns its index where one is asked for. Local. */
int mgr_catalogue_add_file(mgr_catalogue *cat, const char *path, uint64_t bytes, uint32_t *out,
                           mgr_err *err) MGR_NODISCARD;
int mgr_catalogue_add_stored(mgr_catalogue *cat, const mgr_stored *stored,
                             mgr_err *err) MGR_NODISCARD;
int mgr_catalogue_add_record(mgr_catalogue *cat, const mgr_record *record, uint32_t *out,
                             mgr_err *err) MGR_NODISCARD;
int mgr_catalogue_add_attr(mgr_catalogue *cat, const mgr_attr *attr, mgr_err *err) MGR_NODISCARD;

/* Make *text a copy of itself that lives as long as the catalogue. Local. */
int mgr_catalogue_own(mgr_catalogue *cat, const char **text, mgr_err *err) MGR_NODISCARD;

/* The attribute `key` of `file`, or NULL. Local. */
const mgr_attr *mgr_catalogue_attr(const mgr_catalogue *cat, uint32_t file, const char *key);

/* Plain bytes for an exchange between ranks, and back: any number of packed catalogues, one behind
 * the other, are appended to `cat`, their indices shifted. The bytes come from our own ranks, yet
 * are bounds-checked. Local. */
struct mgr_buf;
int mgr_catalogue_pack(const mgr_catalogue *cat, struct mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_catalogue_unpack(mgr_catalogue *cat, const void *bytes, size_t len,
                         mgr_err *err) MGR_NODISCARD;

void mgr_catalogue_clear(mgr_catalogue *cat);

/* Bytes of a stored tensor whose elements lie one behind the other, as all of a target do. Pure. */
uint64_t mgr_stored_bytes(const mgr_stored *stored);

/* "optimizer", "rng", "extra state", "other". */
const char *mgr_skip_name(mgr_skip kind);

#ifdef __cplusplus
}
#endif
#endif
