/*
 * A torch.save archive while it is looked at: its members, its pickle, and what becomes of a tensor
 * in that. The readers of whole files (torch_file.h, deepspeed_file.h) open one, walk the pickle
 * from its root, and close it.
 */
#ifndef MGR_FMT_TORCH_ARCHIVE_H
#define MGR_FMT_TORCH_ARCHIVE_H

#include <stdbool.h>

#include "core/str.h"
#include "fmt/pickle.h"
#include "fmt/zip.h"
#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

/* One member of the archive, by name, and what a tensor has said about it. */
typedef struct mgr_torch_storage {
    const mgr_zip_member *member;
    uint32_t record; /* MGR_NONE until a tensor uses it, and in archives without CRCs */
    bool used;
    mgr_dtype dtype; /* of its storage class, MGR_DTYPE_NONE for UntypedStorage */
} mgr_torch_storage;

typedef struct mgr_torch_archive {
    mgr_catalogue *cat;
    uint32_t file;
    const mgr_reader *reader;
    mgr_zip zip;
    mgr_pickle pickle;
    mgr_torch_storage *storages; /* all members, sorted by name */
    bool has_crcs;
    size_t first; /* number of tensors in the catalogue before this file */
    uint64_t attr_bytes;
    bool optimizer; /* its settings are attributes */
    bool stepped;   /* they are read behind the model, with its planes */
    mgr_buf name;   /* of the entry at hand */
    mgr_err *err;
} mgr_torch_archive;

/* Parse members and pickle of `reader`, which is file number `file` of `cat` and outlives the
 * archive. Close it whatever was returned. Local. */
int mgr_torch_archive_open(mgr_torch_archive *t, mgr_catalogue *cat, uint32_t file,
                           const mgr_reader *reader, mgr_err *err) MGR_NODISCARD;
void mgr_torch_archive_close(mgr_torch_archive *t);

/* One value that is no dict, under the name `t->name`: a tensor goes into the catalogue, extra
 * state is counted, everything else is refused. Local. */
int mgr_torch_archive_leaf(mgr_torch_archive *t, const mgr_node *node) MGR_NODISCARD;

/* Refuse the entry `t->name`, which is `node`. Returns `code`. */
int mgr_torch_archive_bad(mgr_torch_archive *t, mgr_code code, const mgr_node *node,
                          const char *expected);

#endif
