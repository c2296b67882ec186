/* The tokenizer in a Megatron checkpoint. */
#include <stdio.h>
#include <string.h>

#include "form/megatron_write.h"
#include "form/sidecar.h"
#include "io/file.h"

/* Megatron-LM and its bridges keep theirs below the iteration: names are not asked for there. */
static int own_folder(const mgr_output *out, mgr_arena *arena, const char **folder, mgr_err *err)
{
    const char *path;
    *folder = NULL;
    if (!out->origin || out->config->source.tokenizer[0] ||
        !mgr_has_prefix(out->origin->format, "megatron-"))
        return MGR_OK;
    MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/tokenizer", out->origin->directory));
    *folder = mgr_is_dir(path) ? path : NULL;
    return MGR_OK;
}

static int write_folder(const mgr_output *out, const char *to, mgr_arena *arena, mgr_err *err)
{
    const char *own, *found, *generation;
    MGR_TRY(own_folder(out, arena, &own, err));
    if (own)
        return mgr_sidecar_copy_folder(own, to, err);
    MGR_TRY(mgr_sidecar_find_tokenizer(out, arena, &found, err));
    MGR_TRY(mgr_sidecar_find_generation(out, arena, &generation, err));
    if (!found && !generation)
        return MGR_OK;
    MGR_TRY(mgr_make_dirs(to, err)); /* a resumed run may have it */
    MGR_TRY(mgr_sidecar_copy(out, to, err));
    return mgr_sync_dir(to, err);
}

int mgr_megatron_write_tokenizer(const mgr_output *out, const char *directory, mgr_err *err)
{
    mgr_arena arena = {0};
    char folder[32];
    const char *to;
    mgr_megatron_folder(out->config->target.iteration, folder, sizeof folder);
    int rc = mgr_arena_fmt(&arena, &to, err, "%s/%s/tokenizer", directory, folder);
    if (rc == MGR_OK)
        rc = write_folder(out, to, &arena, err);
    mgr_arena_clear(&arena);
    return rc;
}

int mgr_megatron_tokenizer_review(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    mgr_arena arena = {0};
    const char *from = NULL;
    int rc = mgr_sidecar_check(out, err);
    if (rc == MGR_OK)
        rc = own_folder(out, &arena, &from, err);
    if (rc == MGR_OK && !from)
        rc = mgr_sidecar_find_tokenizer(out, &arena, &from, err);
    const mgr_remark remark = {.kind = MGR_REMARK_CARRIED, .field = "tokenizer", .was = from};
    if (rc == MGR_OK && from)
        rc = mgr_remarks_add(remarks, &remark, err);
    mgr_arena_clear(&arena);
    return rc;
}
