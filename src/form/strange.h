/*
 * What people have instead of a checkpoint: recognised, and named with the way out.
 */
#ifndef MGR_FORM_STRANGE_H
#define MGR_FORM_STRANGE_H

#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

/* Fail with what lies at `path`, where no format has been recognised; with "no checkpoint of a
 * known format" where nothing is known of it. Local, reads names only. */
int mgr_strange_path(const char *path, mgr_err *err);

/* Fail with what lies in a Hugging Face folder that has no weights under their names. */
int mgr_strange_folder(const char *directory, mgr_err *err);

/* MGR_OK, or a failure that says what a file of weights is in truth: a git-lfs pointer, a web page,
 * GGUF, an archive. Local, reads its first bytes. */
int mgr_strange_file(const mgr_reader *reader, mgr_err *err) MGR_NODISCARD;

/* MGR_OK, or a failure that names the wrapper whose prefix all names have ("module."), that the
 * tensors are shells without elements, of double precision or quantised. Pure. */
int mgr_strange_tensors(const mgr_catalogue *cat, mgr_err *err) MGR_NODISCARD;

#endif
