#include "look/verify.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "form/source.h"
#include "look/view.h"

/* A tensor by file and name; paths are below the output's folder. */
typedef struct key {
    const char *path;
    const mgr_stored *stored;
} key;

static int by_key(const void *x, const void *y)
{
    const key *const a = x, *const b = y;
    const int c = strcmp(a->path, b->path);
    return c ? c : strcmp(a->stored->name, b->stored->name);
}

static int list_keys(const mgr_catalogue *cat, const char *directory, key **out, mgr_err *err)
{
    const size_t skip = directory ? strlen(directory) + 1 : 0;
    MGR_TRY(mgr_alloc(out, cat->n_stored, sizeof **out, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        (*out)[i] = (key){cat->files[cat->stored[i].file].path + skip, &cat->stored[i]};
    if (cat->n_stored)
        qsort(*out, cat->n_stored, sizeof **out, by_key);
    return MGR_OK;
}

static int differs(const key *at, const char *what, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_INTERNAL, "self-check of the output: tensor '%s' of '%s' %s",
             at->stored->name, at->path, what);
    return mgr_hint(err, "nothing was published; please report this");
}

static bool same_form(const mgr_stored *a, const mgr_stored *b)
{
    const bool compressed = b->offset >= MGR_VIRTUAL_OFFSET; /* its place is the library's affair */
    return a->dtype == b->dtype && a->ndim == b->ndim && (compressed || a->offset == b->offset) &&
           memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape) == 0;
}

/* Both lists are sorted, so the first difference shows which side has a key that the other lacks.
 */
static int compare_keys(const key *wanted, size_t n_wanted, const key *found, size_t n_found,
                        mgr_err *err)
{
    for (size_t i = 0; i < n_wanted || i < n_found; i++) {
        const int c = i == n_wanted ? 1 : i == n_found ? -1 : by_key(&wanted[i], &found[i]);
        if (c < 0)
            return differs(&wanted[i], "is not there", err);
        if (c > 0)
            return differs(&found[i], "was not planned", err);
        if (!same_form(wanted[i].stored, found[i].stored))
            return differs(&found[i], "has another shape, type or place than planned", err);
    }
    return MGR_OK;
}

/* The logical tensors that the output shows must be those that were meant, but for padding of the
 * vocabulary, whose true size no format keeps. */
static int compare_tensors(const mgr_tensors *wanted, const mgr_tensors *found, mgr_err *err)
{
    char label[96];
    for (uint32_t i = 0; i < wanted->n; i++) {
        const mgr_tensor *const t = &wanted->list[i];
        const uint32_t k = mgr_tensors_match(found, t);
        const bool padded = t->role == MGR_ROLE_EMBEDDING || t->role == MGR_ROLE_LM_HEAD;
        if (k != MGR_NONE && found->list[k].cols == t->cols &&
            (padded ? found->list[k].rows >= t->rows : found->list[k].rows == t->rows))
            continue;
        return mgr_fail(err, MGR_ERR_INTERNAL, "self-check of the output: %s is %s",
                        mgr_tensor_label(t, label, sizeof label),
                        k == MGR_NONE ? "not there" : "of another shape than planned");
    }
    return MGR_OK;
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool same_real(double a, double b)
{
    return a <= b && a >= b;
}

bool mgr_same_kind(const mgr_model *a, const mgr_model *b)
{
    bool same = a->top_k == b->top_k && a->tied == b->tied && a->kv_groups == b->kv_groups &&
                same_real(a->norm_epsilon, b->norm_epsilon);
    if (a->positions == MGR_POSITIONS_ROPE)
        same = same && same_real(a->rotary_base, b->rotary_base) &&
               same_real(a->rope.factor, b->rope.factor) &&
               memcmp(a->nope_layers, b->nope_layers, sizeof a->nope_layers) == 0;
    same = same && same_real(a->embedding_multiplier, b->embedding_multiplier) &&
           same_real(a->residual_multiplier, b->residual_multiplier) &&
           same_real(a->attention_multiplier, b->attention_multiplier) &&
           same_real(a->logits_divisor, b->logits_divisor);
    for (size_t i = 0; same && (mgr_model_feature(a, i) || mgr_model_feature(b, i)); i++)
        same = same_text(mgr_model_feature(a, i), mgr_model_feature(b, i));
    return same;
}

static int compare_models(const mgr_tensors *wanted, const mgr_tensors *found, mgr_err *err)
{
    MGR_TRY(compare_tensors(wanted, found, err));
    if (found->n == wanted->n && mgr_same_kind(&wanted->model, &found->model))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_INTERNAL,
                    "self-check of the output: it shows another model than was meant");
}

static int compare(const mgr_layout *planned, const mgr_view *view, const char *directory,
                   mgr_err *err)
{
    const mgr_catalogue *const cat = planned->cat;
    key *wanted = NULL, *found = NULL;
    int rc = list_keys(cat, NULL, &wanted, err);
    if (rc == MGR_OK)
        rc = list_keys(&view->cat, directory, &found, err);
    if (rc == MGR_OK)
        rc = compare_keys(wanted, cat->n_stored, found, view->cat.n_stored, err);
    if (rc == MGR_OK)
        rc = compare_models(planned->tensors, &view->tensors, err);
    mgr_free(wanted);
    mgr_free(found);
    return rc;
}

int mgr_verify_output(const char *format_name, const mgr_layout *planned, const char *directory,
                      mgr_err *err)
{
    mgr_view view;
    const mgr_source_format *const format = mgr_source_find(format_name);
    if (!format)
        return MGR_OK;
    int rc = mgr_view_open_as(&view, format, directory, planned->tensors->kept, err);
    if (rc == MGR_OK && !view.has_model)
        rc = mgr_fail(err, MGR_ERR_INTERNAL, "self-check of the output: %s", view.refusal.data);
    if (rc == MGR_OK)
        rc = compare(planned, &view, directory, err);
    mgr_view_close(&view);
    return rc;
}
