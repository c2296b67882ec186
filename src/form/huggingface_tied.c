#include "form/huggingface_tied.h"

#include <stdio.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mem.h"

#define PIECES 64
#define PIECE ((uint64_t)16 << 10)

/* From the third on T5's, whose stacks may have it again each. */
static const char *const names[] = {"model.embed_tokens.weight", "lm_head.weight", "shared.weight",
                                    "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"};

static bool is_plain(const mgr_stored *s)
{
    return s->ndim == 2 && s->stride[1] == 1 && s->stride[0] == s->shape[1] && s->shape[0] > 0;
}

/* Over pieces at even distances, or all of it where that is little. */
static int hash(const mgr_stored *s, const mgr_reader *reader, uint64_t *out, mgr_err *err)
{
    const uint64_t bytes = s->shape[0] * s->shape[1] * mgr_dtype_size(s->dtype);
    const uint64_t pieces = bytes <= PIECES * PIECE ? (bytes + PIECE - 1) / PIECE : PIECES;
    const uint64_t step = pieces > 1 ? (bytes - PIECE) / (pieces - 1) : 0;
    char *piece = NULL;
    int rc = mgr_alloc(&piece, PIECE, 1, err);
    *out = (uint64_t)s->dtype;
    for (uint64_t i = 0; rc == MGR_OK && i < pieces; i++) {
        const uint64_t at = bytes <= PIECES * PIECE ? i * PIECE : i * step;
        const size_t len = (size_t)(bytes - at < PIECE ? bytes - at : PIECE);
        rc = mgr_reader_read(reader, s->offset + at, piece, len, err);
        if (rc == MGR_OK)
            *out = XXH3_64bits_withSeed(piece, len, *out);
    }
    mgr_free(piece);
    return rc;
}

int mgr_huggingface_sample(mgr_catalogue *cat, size_t first, uint32_t file,
                           const mgr_reader *reader, mgr_err *err)
{
    for (size_t i = first; i < cat->n_stored; i++)
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
            mgr_attr a = {.key = names[k], .file = file, .kind = MGR_ATTR_INT};
            uint64_t value;
            if (strcmp(cat->stored[i].name, names[k]) != 0 || !is_plain(&cat->stored[i]))
                continue;
            MGR_TRY(hash(&cat->stored[i], reader, &value, err));
            a.i = (int64_t)value;
            MGR_TRY(mgr_catalogue_add_attr(cat, &a, err));
        }
    return MGR_OK;
}

static const mgr_attr *sample_of(const mgr_catalogue *cat, const char *name)
{
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (cat->attrs[i].kind == MGR_ATTR_INT && strcmp(cat->attrs[i].key, name) == 0)
            return &cat->attrs[i];
    return NULL;
}

int mgr_huggingface_check_tied(const mgr_catalogue *cat, const mgr_model *model, mgr_err *err)
{
    const mgr_attr *const embedding = sample_of(cat, names[0]), *const head =
                                                                    sample_of(cat, names[1]);
    if (!model->tied || !embedding || !head || embedding->i == head->i)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT,
             "'%s' says that the embeddings are tied (tie_word_embeddings), but '%s' holds a "
             "'lm_head.weight' that is not the embedding",
             cat->files[0].path, cat->files[head->file].path);
    return mgr_hint(err, "set tie_word_embeddings to false, as transformers 5 loads it, or remove "
                         "that tensor");
}
