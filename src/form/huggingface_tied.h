/*
 * A head that is stored although config.json says that the embedding is the head: it must repeat
 * it, and where it does not, that is said before anything is planned.
 */
#ifndef MGR_FORM_HUGGINGFACE_TIED_H
#define MGR_FORM_HUGGINGFACE_TIED_H

#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/model.h"

/* Take samples of the embedding and the head among the tensors of `file`, from `first` on, into its
 * attributes: a megabyte of each at most. Local. */
int mgr_huggingface_sample(mgr_catalogue *cat, size_t first, uint32_t file,
                           const mgr_reader *reader, mgr_err *err) MGR_NODISCARD;

/* Refuse a tied model whose samples differ. Pure. */
int mgr_huggingface_check_tied(const mgr_catalogue *cat, const mgr_model *model,
                               mgr_err *err) MGR_NODISCARD;

#endif
