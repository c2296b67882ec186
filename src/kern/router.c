/*
 * Routers: small, drawn whole by every rank that stores one.
 */
#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "kern/kern.h"
#include "mgr/keys.h"
#include "mgr/upcycle.h"

#define CHUNK 1024
#define N_NAMES MGR_ROUTER_COUNT

/* The standard deviation 0.02 of UNIFORM, over that of a uniform number: 0.02 * sqrt(12). */
#define UNIFORM_SCALE 0.06928203230275509

static const mgr_key normal_keys[] = {
    MGR_ROW_REAL("upcycle.router_std", upcycle.router_std, "0.02", 0, 100,
                 "standard deviation of the routers 'normal' and 'virtual-groups'"),
};

#define ROW_NOISE                                                                                  \
    MGR_ROW_REAL("upcycle.router_noise", upcycle.router_noise, "0", 0, 100,                        \
                 "noise on rows of the router that are there more than once, but for the first "   \
                 "of each, as a share of their std: it breaks ties, and step 0 with them")

static const mgr_key group_keys[] = {
    MGR_ROW_REAL("upcycle.router_std", upcycle.router_std, "0.02", 0, 100,
                 "standard deviation of the routers 'normal' and 'virtual-groups'"),
    ROW_NOISE,
};

static const mgr_key source_keys[] = {
    ROW_NOISE,
};

static const mgr_key file_keys[] = {
    MGR_ROW_PATH("upcycle.router_file", upcycle.router_file, "",
                 "safetensors file of the router 'file': a matrix [experts, hidden] for each layer "
                 "with experts, under its name in Hugging Face or Megatron"),
};

/* Names and keys in one: a name is a table's owner. */
static const mgr_key_table tables[N_NAMES] = {
    [MGR_ROUTER_UNIFORM] = MGR_NO_KEYS(MGR_OWNER_ROUTER, "uniform"),
    [MGR_ROUTER_UNIFORM01] = MGR_NO_KEYS(MGR_OWNER_ROUTER, "uniform01"),
    [MGR_ROUTER_UNIFORM01_CENTRED] = MGR_NO_KEYS(MGR_OWNER_ROUTER, "uniform01-centred"),
    [MGR_ROUTER_NORMAL] = MGR_KEY_TABLE(MGR_OWNER_ROUTER, "normal", normal_keys),
    [MGR_ROUTER_VIRTUAL_GROUPS] = MGR_KEY_TABLE(MGR_OWNER_ROUTER, "virtual-groups", group_keys),
    [MGR_ROUTER_ZEROS] = MGR_NO_KEYS(MGR_OWNER_ROUTER, "zeros"),
    [MGR_ROUTER_FILE] = MGR_KEY_TABLE(MGR_OWNER_ROUTER, "file", file_keys),
    [MGR_ROUTER_SOURCE] = MGR_KEY_TABLE(MGR_OWNER_ROUTER, "source", source_keys),
};

const mgr_key_table *mgr_router_keys(mgr_router router)
{
    return (unsigned)router < N_NAMES ? &tables[router] : NULL;
}

const char *mgr_router_name(mgr_router router)
{
    return (unsigned)router < N_NAMES ? tables[router].owner : "unknown";
}

mgr_router mgr_router_find(const char *name)
{
    int i = 0;
    while (i < N_NAMES && strcmp(tables[i].owner, name) != 0)
        i++;
    return (mgr_router)i;
}

static mgr_stream router_stream(uint64_t seed, uint32_t layer, uint32_t expert)
{
    return (mgr_stream){
        .seed = seed, .purpose = MGR_PURPOSE_ROUTER, .layer = layer, .expert = expert};
}

static size_t chunk_of(uint64_t left)
{
    return left < CHUNK ? (size_t)left : CHUNK;
}

/* The mean of all words, rounded once from the exact sum, below 2^64 for fewer than 2^32 words. */
static double mean_word(uint64_t seed, uint32_t layer, uint32_t experts, uint64_t hidden)
{
    uint32_t words[CHUNK];
    uint64_t sum = 0;

    for (uint32_t e = 0; e < experts; e++) {
        const mgr_stream stream = router_stream(seed, layer, e);
        for (uint64_t h = 0; h < hidden; h += CHUNK) {
            const size_t n = chunk_of(hidden - h);
            mgr_words(&stream, h, n, words);
            for (size_t i = 0; i < n; i++)
                sum += words[i];
        }
    }
    return (double)sum / (double)(experts * hidden);
}

/* One row: (word * 2^-32 - centre) * scale in float64, then to float32, then to `to`. */
static void uniform_row(const mgr_stream *stream, double centre, double scale, uint64_t hidden,
                        unsigned char *out, mgr_dtype to)
{
    uint32_t words[CHUNK];
    float values[CHUNK];

    for (uint64_t h = 0; h < hidden; h += CHUNK) {
        const size_t n = chunk_of(hidden - h);
        mgr_words(stream, h, n, words);
        for (size_t i = 0; i < n; i++)
            values[i] = (float)((words[i] * 0x1p-32 - centre) * scale);
        mgr_cast(out + h * mgr_dtype_size(to), to, values, MGR_DTYPE_F32, n);
    }
}

void mgr_router_add_noise(uint64_t seed, uint32_t layer, uint32_t expert, float std, uint64_t first,
                          size_t n, float *values)
{
    const mgr_stream stream = {
        .seed = seed, .purpose = MGR_PURPOSE_ROUTER_NOISE, .layer = layer, .expert = expert};
    float noise[CHUNK];
    assert(n <= CHUNK);
    mgr_normals_scaled(&stream, first, n, 0, std, noise, MGR_DTYPE_F32);
    for (size_t i = 0; i < n; i++)
        values[i] += noise[i];
}

/* A row that is there before, and noise. */
static void noisy_normals(const mgr_router_recipe *r, const mgr_stream *row, uint32_t expert,
                          uint64_t hidden, unsigned char *out, mgr_dtype to)
{
    float values[CHUNK];
    for (uint64_t h = 0; h < hidden; h += CHUNK) {
        const size_t n = chunk_of(hidden - h);
        mgr_normals_scaled(row, h, n, 0, (float)r->std, values, MGR_DTYPE_F32);
        mgr_router_add_noise(r->seed, row->layer, expert, (float)(r->std * r->noise), h, n, values);
        mgr_cast(out + h * mgr_dtype_size(to), to, values, MGR_DTYPE_F32, n);
    }
}

/* Rows of N(0, std^2), each `group` times. */
static void normal_rows(const mgr_router_recipe *r, uint32_t layer, uint32_t experts,
                        uint64_t hidden, unsigned char *out, mgr_dtype to)
{
    const uint32_t group = r->kind == MGR_ROUTER_VIRTUAL_GROUPS ? r->group : 1;
    assert(group > 0);
    for (uint32_t e = 0; e < experts; e++, out += hidden * mgr_dtype_size(to)) {
        const mgr_stream stream = router_stream(r->seed, layer, e / group);
        if (e % group == 0 || r->noise == 0)
            mgr_normals_scaled(&stream, 0, (size_t)hidden, 0, (float)r->std, out, to);
        else
            noisy_normals(r, &stream, e, hidden, out, to);
    }
}

void mgr_router_fill(const mgr_router_recipe *r, uint32_t layer, uint32_t experts, uint64_t hidden,
                     void *out, mgr_dtype to)
{
    const bool centred = r->kind == MGR_ROUTER_UNIFORM || r->kind == MGR_ROUTER_UNIFORM01_CENTRED;
    const double centre = centred ? mean_word(r->seed, layer, experts, hidden) * 0x1p-32 : 0;
    const double scale = r->kind == MGR_ROUTER_UNIFORM ? UNIFORM_SCALE : 1;
    unsigned char *row = out;

    assert(r->kind < MGR_ROUTER_FILE);
    if (r->kind == MGR_ROUTER_ZEROS) {
        memset(out, 0, experts * hidden * mgr_dtype_size(to));
        return;
    }
    if (r->kind == MGR_ROUTER_NORMAL || r->kind == MGR_ROUTER_VIRTUAL_GROUPS) {
        normal_rows(r, layer, experts, hidden, out, to);
        return;
    }
    for (uint32_t e = 0; e < experts; e++) {
        const mgr_stream stream = router_stream(r->seed, layer, e);
        uniform_row(&stream, centre, scale, hidden, row, to);
        row += hidden * mgr_dtype_size(to);
    }
}
