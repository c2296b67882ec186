/*
 * What sources that lie in torch.distributed.checkpoint's files share: each .distcp file needs
 * .metadata to be understood, and a rank reads many of them, so that it is held, once parsed, in
 * the `held` of mgr_source_files until the source is described.
 */
#ifndef MGR_FORM_DCP_CHUNKS_H
#define MGR_FORM_DCP_CHUNKS_H

#include "fmt/dcp.h"
#include "io/reader.h"
#include "mgr/catalogue.h"

#define MGR_DCP_METADATA ".metadata"

/* directory/.metadata, parsed once, whose keys `sort` tells apart; *held owns it. Local. */
int mgr_dcp_hold(void **held, const char *directory, mgr_dcp_sort *sort, const mgr_dcp **out,
                 mgr_err *err) MGR_NODISCARD;

/* Give back what was held; NULL is fine. */
void mgr_dcp_forget(void *held);

/* What .metadata has that is no weight, into the catalogue's counts. Pure. */
void mgr_dcp_count_skipped(const mgr_dcp *dcp, mgr_catalogue *cat);

/* One chunk of the file that `reader` has, as a stored tensor whose name says its place
 * (mgr_megatron_dist_name). It must be what .metadata says of it, and plain: the elements one
 * behind the other. Local. Errors: MGR_ERR_FORMAT, MGR_ERR_UNSUPPORTED, MGR_ERR_IO. */
int mgr_dcp_read_chunk(const mgr_dcp *dcp, const mgr_dcp_item *item, mgr_catalogue *cat,
                       uint32_t file, const mgr_reader *reader, mgr_err *err) MGR_NODISCARD;

#endif
