#include "fmt/deepspeed_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "fmt/torch_archive.h"
#include "fmt/torch_settings.h"

/*
 *   model_states.pt  {"module": {NAME: tensor}, "param_shapes": [{NAME: torch.Size}],
 *                     "frozen_param_shapes": None | {NAME: torch.Size}, "frozen_param_fragments":
 *                     None | {NAME: tensor}, "shared_params": {NAME: NAME}, "dp_world_size": n,
 * ...} optim_states.pt  {"optimizer_state_dict": {"fp32_flat_groups": [tensor] (ZeRO-3) |
 *                     "single_partition_of_fp32_groups": [tensor], "partition_count": n | [n],
 *                     "param_alignment_paddings": [[n]], "optimizer_state_dict": ..., ...}, ...}
 */
#define MAX_NAME 1024
#define NAME_SHOWN 200
#define AFFINE_VERSION 1
#define FNV_START UINT64_C(1469598103934665603)
#define FNV_PRIME UINT64_C(1099511628211)

/* Set the name of the entry at hand. */
static int name_entry(mgr_torch_archive *t, const char *prefix, const char *name)
{
    t->name.len = 0;
    return mgr_buf_fmt(&t->name, t->err, "%s%s", prefix, name);
}

static int refuse(mgr_torch_archive *t, const char *key, const mgr_node *node, const char *wanted)
{
    MGR_TRY(name_entry(t, "", key));
    if (node)
        return mgr_torch_archive_bad(t, MGR_ERR_FORMAT, node, wanted);
    return mgr_fail(t->err, MGR_ERR_FORMAT,
                    "'%s' has no entry '%s': it is no such file of DeepSpeed", t->reader->name,
                    key);
}

static int add_text(mgr_torch_archive *t, const char *prefix, const char *name, const char *text)
{
    MGR_TRY(name_entry(t, prefix, name));
    const mgr_attr a = {.key = t->name.data, .file = t->file, .kind = MGR_ATTR_TEXT, .text = text};
    return mgr_catalogue_add_attr(t->cat, &a, t->err);
}

static int add_int(mgr_torch_archive *t, const char *key, int64_t value)
{
    const mgr_attr a = {.key = key, .file = t->file, .kind = MGR_ATTR_INT, .i = value};
    return mgr_catalogue_add_attr(t->cat, &a, t->err);
}

/* A number that the file must have. */
static int take_int(mgr_torch_archive *t, const mgr_node *dict, const char *key)
{
    int64_t value;
    const mgr_node *const node = mgr_node_get(dict, key);
    if (!mgr_node_int(node, &value))
        return refuse(t, key, node, "a number");
    return add_int(t, key, value);
}

/* Files of all versions have it; it is for people and for telling runs apart. */
static int take_version(mgr_torch_archive *t, const mgr_node *root)
{
    const char *const text = mgr_node_text(mgr_node_get(root, MGR_DS_VERSION));
    return text ? add_text(t, "", MGR_DS_VERSION, text) : MGR_OK;
}

/* ---- shapes ---- */

/* "2 3" of torch.Size([2, 3]). */
static int spell_numbers(mgr_torch_archive *t, const char *key, const mgr_node *node, mgr_buf *out)
{
    mgr_node *const *items;
    size_t n;
    out->len = 0;
    MGR_TRY(mgr_buf_text(out, "", t->err));
    if (!mgr_node_elements(node, &items, &n))
        return refuse(t, key, node, "a list of numbers");
    for (size_t i = 0; i < n; i++) {
        int64_t value;
        if (!mgr_node_int(items[i], &value) || value < 0)
            return refuse(t, key, items[i], "a number that is not negative");
        MGR_TRY(mgr_buf_fmt(out, t->err, "%s%" PRId64, i ? " " : "", value));
    }
    return MGR_OK;
}

static uint64_t digest_of(uint64_t h, const char *text)
{
    for (;; text++) {
        h = (h ^ (unsigned char)*text) * FNV_PRIME;
        if (!*text)
            return h;
    }
}

/* What is done with the dicts of shapes of one file. */
typedef struct shapes {
    mgr_torch_archive *t;
    bool keep; /* as attributes; the digest is taken anyway */
    uint64_t digest;
    mgr_buf text;
} shapes;

static int take_shape(shapes *s, const char *prefix, const mgr_node *key, const mgr_node *shape)
{
    const char *const name = mgr_node_text(key);
    if (!name || !*name || key->u.s.len > MAX_NAME)
        return refuse(s->t, "param_shapes", key, "a name");
    MGR_TRY(spell_numbers(s->t, "param_shapes", shape, &s->text));
    s->digest = digest_of(digest_of(digest_of(s->digest, prefix), name), s->text.data);
    return s->keep ? add_text(s->t, prefix, name, s->text.data) : MGR_OK;
}

static int take_dict(shapes *s, const char *prefix, const mgr_node *dict)
{
    if (!mgr_node_is_dict(dict))
        return refuse(s->t, "param_shapes", dict, "a dict of shapes");
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++)
        MGR_TRY(take_shape(s, prefix, mgr_node_key(dict, i), mgr_node_value(dict, i)));
    return MGR_OK;
}

static int take_groups(shapes *s, const mgr_node *list)
{
    mgr_node *const *items;
    size_t n;
    char prefix[48];
    if (!mgr_node_elements(list, &items, &n))
        return refuse(s->t, "param_shapes", list, "a list of dicts, which a run with ZeRO writes");
    for (size_t g = 0; g < n; g++) {
        snprintf(prefix, sizeof prefix, MGR_DS_PARAM "%zu.", g);
        MGR_TRY(take_dict(s, prefix, items[g]));
    }
    return MGR_OK;
}

static bool is_there(const mgr_node *node)
{
    return node && node->kind != MGR_NODE_NONE;
}

static int take_shapes(mgr_torch_archive *t, const mgr_node *root, bool whole)
{
    shapes s = {.t = t, .keep = whole, .digest = FNV_START};
    const mgr_node *const frozen = mgr_node_get(root, "frozen_param_shapes");
    int rc = take_groups(&s, mgr_node_get(root, "param_shapes"));
    if (rc == MGR_OK && is_there(frozen))
        rc = take_dict(&s, MGR_DS_FROZEN, frozen);
    if (rc == MGR_OK)
        rc = add_int(t, MGR_DS_DIGEST, (int64_t)(s.digest >> 1));
    mgr_buf_clear(&s.text);
    return rc;
}

/* ---- the model's file ---- */

/* Tensors of a dict, under `prefix`; those without elements are what ZeRO-3 leaves in a module. */
static int take_tensors(mgr_torch_archive *t, const char *key, const mgr_node *dict,
                        const char *prefix)
{
    if (!mgr_node_is_dict(dict))
        return refuse(t, key, dict, "a dict of tensors");
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const mgr_node *const name = mgr_node_key(dict, i);
        const size_t before = t->cat->n_stored, records = t->cat->n_records;
        if (!mgr_node_text(name) || name->u.s.len > MAX_NAME)
            return refuse(t, key, name, "a name");
        MGR_TRY(name_entry(t, prefix, mgr_node_text(name)));
        MGR_TRY(mgr_torch_archive_leaf(t, mgr_node_value(dict, i)));
        if (t->cat->n_stored == before || mgr_stored_bytes(&t->cat->stored[before]) > 0)
            continue;
        t->cat->n_stored = before;
        t->cat->n_records = records;
    }
    return MGR_OK;
}

static int take_shared(mgr_torch_archive *t, const mgr_node *dict)
{
    if (!is_there(dict))
        return MGR_OK;
    if (!mgr_node_is_dict(dict))
        return refuse(t, "shared_params", dict, "a dict of names");
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const char *const alias = mgr_node_text(mgr_node_key(dict, i));
        const char *const name = mgr_node_text(mgr_node_value(dict, i));
        if (!alias || !name)
            return refuse(t, "shared_params", mgr_node_key(dict, i), "two names");
        MGR_TRY(add_text(t, MGR_DS_SHARED, alias, name));
    }
    return MGR_OK;
}

/* Experts that are spread over groups of ranks of their own. */
static int check_experts(mgr_torch_archive *t, const mgr_node *root)
{
    static const char *const keys[] = {"ds_autoep_layers", "autoep_layers", "num_experts"};
    mgr_node *const *items;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const mgr_node *const node = mgr_node_get(root, keys[i]);
        size_t n = 0;
        if (!is_there(node) || (mgr_node_elements(node, &items, &n) && n == 0))
            continue;
        mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                 "'%s' has '%s': experts that DeepSpeed's own layers keep (AutoEP, DeepSpeed-MoE)",
                 t->reader->name, keys[i]);
        return mgr_hint(t->err, "gather the model first: save_16bit_model in the run");
    }
    return MGR_OK;
}

/* How a run with tensor parallelism cut parameters, which are whole here: of no matter, but for
 * what a later version may mean by it (checkpoint/affine.py). */
static int check_maps(mgr_torch_archive *t, const mgr_node *root)
{
    const mgr_node *const info = mgr_node_get(root, "universal_checkpoint_info");
    const mgr_node *const version = mgr_node_get(mgr_node_get(info, "affine_map"), "version");
    int64_t number = 0;
    if (!version || (mgr_node_int(version, &number) && number <= AFFINE_VERSION))
        return MGR_OK;
    return mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                    "'%s' has an affine_map of version %" PRId64 "; known is %d", t->reader->name,
                    number, AFFINE_VERSION);
}

static int take_model(mgr_torch_archive *t, bool whole)
{
    const mgr_node *const root = t->pickle.root;
    const mgr_node *const pieces = mgr_node_get(root, "frozen_param_fragments");
    if (!mgr_node_is_dict(root))
        return refuse(t, "", root, "a dict");
    MGR_TRY(check_experts(t, root));
    MGR_TRY(check_maps(t, root));
    MGR_TRY(take_version(t, root));
    MGR_TRY(take_int(t, root, MGR_DS_RANKS));
    MGR_TRY(take_int(t, root, MGR_DS_MODEL_RANKS));
    MGR_TRY(take_shapes(t, root, whole));
    if (is_there(pieces))
        MGR_TRY(take_tensors(t, "frozen_param_fragments", pieces, MGR_DS_FROZEN));
    if (!whole)
        return MGR_OK;
    MGR_TRY(take_shared(t, mgr_node_get(root, "shared_params")));
    if (mgr_node_is_dict(mgr_node_get(root, MGR_DS_SCHEDULER)))
        MGR_TRY(mgr_torch_attr_add(t, MGR_DS_SCHEDULER, mgr_node_get(root, MGR_DS_SCHEDULER)));
    return take_tensors(t, "module", mgr_node_get(root, "module"), MGR_DS_MODULE);
}

int mgr_deepspeed_read_model(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             bool whole, mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    if (rc == MGR_OK)
        rc = take_model(&t, whole);
    mgr_torch_archive_close(&t);
    return rc;
}

/* ---- a parameter of a universal checkpoint ---- */

/* checkpoint/constants.py, EP_IS_EXPERT_PARAM */
static int take_param(mgr_torch_archive *t, const char *name)
{
    const mgr_node *const root = t->pickle.root;
    const bool wrapped = mgr_node_is_dict(root);
    const mgr_node *const expert = wrapped ? mgr_node_get(root, "is_expert_param") : NULL;
    if (expert && expert->kind == MGR_NODE_BOOL && expert->u.i)
        return mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                        "'%s' has 'is_expert_param': experts that DeepSpeed's own layers keep "
                        "(AutoEP)",
                        t->reader->name);
    if (wrapped && !mgr_node_get(root, "param"))
        return refuse(t, "param", NULL, "");
    MGR_TRY(name_entry(t, "", name));
    return mgr_torch_archive_leaf(t, wrapped ? mgr_node_get(root, "param") : root);
}

int mgr_deepspeed_read_param(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             const char *name, mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    if (rc == MGR_OK)
        rc = take_param(&t, name);
    mgr_torch_archive_close(&t);
    return rc;
}

/* ---- the optimizer's file ---- */

static int take_masters(mgr_torch_archive *t, const char *key, const mgr_node *list)
{
    mgr_node *const *items;
    size_t n;
    char name[48];
    if (!mgr_node_elements(list, &items, &n))
        return refuse(t, key, list, "a list of tensors");
    for (size_t g = 0; g < n; g++) {
        snprintf(name, sizeof name, MGR_DS_MASTER "%zu", g);
        MGR_TRY(name_entry(t, "", name));
        MGR_TRY(mgr_torch_archive_leaf(t, items[g]));
    }
    return MGR_OK;
}

/* A number, or one for each group, of which the largest is the number of ranks. */
static int take_parts(mgr_torch_archive *t, const mgr_node *node)
{
    mgr_node *const *items;
    size_t n;
    int64_t most = 0, value;
    if (mgr_node_int(node, &value))
        return add_int(t, MGR_DS_PARTS, value);
    if (!mgr_node_elements(node, &items, &n))
        return refuse(t, MGR_DS_PARTS, node, "a number or a list of them");
    for (size_t i = 0; i < n; i++) {
        if (!mgr_node_int(items[i], &value))
            return refuse(t, MGR_DS_PARTS, items[i], "a number");
        most = value > most ? value : most;
    }
    return add_int(t, MGR_DS_PARTS, most);
}

static int take_paddings(mgr_torch_archive *t, const mgr_node *list)
{
    static const char key[] = "param_alignment_paddings";
    mgr_node *const *items;
    size_t n;
    char name[48];
    mgr_buf text = {0};
    int rc = MGR_OK;
    if (!is_there(list))
        return MGR_OK;
    if (!mgr_node_elements(list, &items, &n))
        return refuse(t, key, list, "a list of lists");
    for (size_t g = 0; rc == MGR_OK && g < n; g++) {
        snprintf(name, sizeof name, MGR_DS_PADDING "%zu", g);
        rc = spell_numbers(t, key, items[g], &text);
        if (rc == MGR_OK)
            rc = add_text(t, "", name, text.data);
    }
    mgr_buf_clear(&text);
    return rc;
}

/* ---- what torch's optimizer keeps ---- */

/* A number, or a tensor of one. */
static int take_step(mgr_torch_archive *t, int64_t group, const mgr_node *step)
{
    char name[48];
    if (!step)
        return MGR_OK;
    snprintf(name, sizeof name, MGR_DS_STEP "%" PRId64, group);
    MGR_TRY(name_entry(t, "", name));
    return mgr_torch_attr_is_scalar(step) ? mgr_torch_attr_add(t, t->name.data, step)
                                          : mgr_torch_number_add(t, step);
}

/* {"step": n, "exp_avg": tensor, "exp_avg_sq": tensor, ...} of a group */
static int take_group_state(mgr_torch_archive *t, int64_t group, const mgr_node *state)
{
    static const char *const kinds[] = {MGR_DS_EXP_AVG, MGR_DS_EXP_AVG_SQ};
    char name[48], key[16];
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        snprintf(key, sizeof key, "%.*s", (int)strlen(kinds[k]) - 1, kinds[k]);
        snprintf(name, sizeof name, "%s%" PRId64, kinds[k], group);
        MGR_TRY(name_entry(t, "", name));
        if (mgr_node_get(state, key))
            MGR_TRY(mgr_torch_archive_leaf(t, mgr_node_get(state, key)));
    }
    return take_step(t, group, mgr_node_get(state, "step"));
}

/* {GROUP: state}, of an elastic checkpoint [state]. */
static int take_states(mgr_torch_archive *t, const mgr_node *states)
{
    mgr_node *const *items;
    size_t n;
    int64_t group;
    if (mgr_node_elements(states, &items, &n)) {
        for (size_t g = 0; g < n; g++)
            MGR_TRY(take_group_state(t, (int64_t)g, items[g]));
        return MGR_OK;
    }
    if (!mgr_node_is_dict(states))
        return refuse(t, "state", states, "a dict");
    for (size_t i = 0; i < mgr_node_n_pairs(states); i++) {
        if (!mgr_node_int(mgr_node_key(states, i), &group) || group < 0)
            return refuse(t, "state", mgr_node_key(states, i), "the number of a group");
        MGR_TRY(take_group_state(t, group, mgr_node_value(states, i)));
    }
    return MGR_OK;
}

/* A value of each setting, but for the numbers of parameters. */
static int take_group(mgr_torch_archive *t, size_t group, const mgr_node *dict)
{
    char prefix[48];
    snprintf(prefix, sizeof prefix, MGR_DS_SETTINGS "%zu.", group);
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const mgr_node *const key = mgr_node_key(dict, i);
        if (!mgr_node_text(key) || key->u.s.len > MAX_NAME ||
            strcmp(mgr_node_text(key), "params") == 0)
            continue;
        MGR_TRY(name_entry(t, prefix, mgr_node_text(key)));
        MGR_TRY(mgr_torch_attr_add(t, t->name.data, mgr_node_value(dict, i)));
    }
    return MGR_OK;
}

static int take_settings(mgr_torch_archive *t, const mgr_node *groups)
{
    mgr_node *const *items;
    size_t n = 0;
    if (groups && !mgr_node_elements(groups, &items, &n))
        return refuse(t, "param_groups", groups, "a list");
    for (size_t g = 0; g < n; g++)
        MGR_TRY(take_group(t, g, items[g]));
    return MGR_OK;
}

/* torch's own dict; elastic checkpoints have the states alone. */
static int take_torch(mgr_torch_archive *t, const mgr_node *torch, bool settings)
{
    const mgr_node *const states = mgr_node_get(torch, "state");
    if (!torch)
        return MGR_OK; /* what is missing is missed by who asks for it */
    MGR_TRY(take_states(t, states ? states : torch));
    return settings ? take_settings(t, mgr_node_get(torch, "param_groups")) : MGR_OK;
}

static int take_optimizer(mgr_torch_archive *t, bool moments, bool settings)
{
    static const char three[] = "fp32_flat_groups", two[] = "single_partition_of_fp32_groups";
    const mgr_node *const root = t->pickle.root;
    const mgr_node *const state = mgr_node_get(root, "optimizer_state_dict");
    const bool zero3 = mgr_node_get(state, three);
    if (!mgr_node_is_dict(state))
        return refuse(t, "optimizer_state_dict", state, "a dict");
    if (!zero3 && !mgr_node_get(state, two))
        return refuse(t, three, NULL, "");
    MGR_TRY(take_version(t, root));
    MGR_TRY(add_int(t, MGR_DS_STAGE, zero3 ? 3 : 2));
    MGR_TRY(take_parts(t, mgr_node_get(state, MGR_DS_PARTS)));
    MGR_TRY(take_paddings(t, mgr_node_get(state, "param_alignment_paddings")));
    if (moments)
        MGR_TRY(take_torch(
            t, mgr_node_get(state, zero3 ? "optimizer_state_dict" : "base_optimizer_state"),
            settings));
    else
        t->cat->skipped[MGR_SKIP_OPTIMIZER]++;
    return take_masters(t, zero3 ? three : two, mgr_node_get(state, zero3 ? three : two));
}

int mgr_deepspeed_read_optimizer(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                 bool moments, bool settings, mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    if (rc == MGR_OK)
        rc = take_optimizer(&t, moments, settings);
    mgr_torch_archive_close(&t);
    return rc;
}

/* Of what was ZeRO-3's, torch's dict is in it; of others the groups alone, and steps lie with the
 * parameters (ds_to_universal.py, _save_optimizer_state). Tensors of a rank that it has are of no
 * meaning here. */
static int take_universal(mgr_torch_archive *t)
{
    const mgr_node *const root = t->pickle.root;
    const mgr_node *const torch = mgr_node_get(root, "optimizer_state_dict");
    const mgr_node *const groups = mgr_node_get(root, "param_groups");
    const mgr_node *const states = mgr_node_get(torch, "state");
    if (!mgr_node_is_dict(root))
        return refuse(t, "", root, "a dict");
    for (size_t i = 0; states && i < mgr_node_n_pairs(states); i++)
        MGR_TRY(take_step(t, (int64_t)i, mgr_node_get(mgr_node_value(states, i), "step")));
    return take_settings(t, groups ? groups : mgr_node_get(torch, "param_groups"));
}

int mgr_deepspeed_read_settings(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    if (rc == MGR_OK)
        rc = take_universal(&t);
    mgr_torch_archive_close(&t);
    return rc;
}

int mgr_deepspeed_read_step(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                            mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    if (rc == MGR_OK)
        rc = take_step(&t, 0, t.pickle.root);
    mgr_torch_archive_close(&t);
    return rc;
}
