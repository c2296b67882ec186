/*
 * The methods and the router: against golden experts, and against their definition taken one
 * element at a time, on any shape and for any cut into rows.
 */
#include "support/check.h"

#include <math.h>

#include "core/mem.h"
#include "kern/kern.h"
#include "mgr/upcycle.h"
#include "unit/golden.h"

static uint64_t mix_state = 7;

static uint64_t mix(void)
{
    uint64_t z = mix_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static const mgr_dtype weights[3] = {MGR_DTYPE_BF16, MGR_DTYPE_F16, MGR_DTYPE_F32};

/* ---- golden experts ---- */

#define MAX_NEURONS 32
#define MAX_ENTRIES 1024

typedef struct golden_case {
    const mgr_method *method;
    uint64_t seed;
    uint32_t layer, expert, neurons, hidden;
    double ratio;
    int shuffle, independent;
    mgr_dtype to;
} golden_case;

static golden_case read_case(golden_file *g)
{
    golden_case c = {0};
    const char *name = golden_token(g);
    char method[32];
    snprintf(method, sizeof method, "%s", name ? name : "");
    c.method = mgr_method_find(method);
    c.seed = golden_number(g, 10);
    c.layer = (uint32_t)golden_number(g, 10);
    c.expert = (uint32_t)golden_number(g, 10);
    c.neurons = (uint32_t)golden_number(g, 10);
    c.hidden = (uint32_t)golden_number(g, 10);
    c.ratio = golden_real(g);
    c.shuffle = (int)golden_number(g, 10);
    c.independent = (int)golden_number(g, 10);
    c.to = mgr_dtype_from_name(golden_token(g));
    return c;
}

/* The whole chain for one matrix: dense weights, permutation, selection, sums, moments, method. */
static void build_matrix(const golden_case *c, mgr_matrix matrix, unsigned char *out)
{
    const int down = matrix == MGR_MATRIX_DOWN;
    const mgr_stream synth = {c->seed, MGR_PURPOSE_SYNTH, c->layer, (uint32_t)matrix};
    const mgr_stream shuffle = {c->seed, MGR_PURPOSE_SHUFFLE, c->layer, c->expert};
    const uint32_t purpose =
        c->independent ? MGR_PURPOSE_SAMPLE_GATE + (uint32_t)matrix : (uint32_t)MGR_PURPOSE_SAMPLE;
    const mgr_stream sample = {c->seed, purpose, c->layer, c->expert};
    const uint32_t n_selected = mgr_selected_count(c->ratio, c->neurons);
    uint16_t dense[MAX_ENTRIES];
    uint32_t dense_of[MAX_NEURONS], selected[MAX_NEURONS], origin[MAX_NEURONS];
    mgr_sums sums[MAX_NEURONS] = {{0, 0, 0, 0}};
    double scratch[2 * MAX_NEURONS], mean, std;
    mgr_err err = MGR_ERR_INIT;

    mgr_normals_scaled(&synth, 0, (size_t)c->neurons * c->hidden, 0.001f, 0.02f, dense,
                       MGR_DTYPE_BF16);
    CHECK_INT(mgr_permutation(&shuffle, c->neurons, dense_of, &err), MGR_OK);
    CHECK_INT(mgr_sample(&sample, c->neurons, n_selected, selected, &err), MGR_OK);
    CHECK_INT(down ? mgr_sums_add_cols(sums, dense, MGR_DTYPE_BF16, c->hidden, c->neurons, scratch)
                   : mgr_sums_add_rows(sums, dense, MGR_DTYPE_BF16, c->neurons, c->hidden),
              0);
    for (uint32_t k = 0; k < n_selected; k++)
        origin[k] = c->shuffle ? dense_of[selected[k]] : selected[k];
    mgr_moments(sums, origin, n_selected, c->hidden, &mean, &std);

    const mgr_expert x = {.seed = c->seed,
                          .layer = c->layer,
                          .expert = c->expert,
                          .matrix = matrix,
                          .width = c->neurons,
                          .source_width = c->neurons,
                          .scale = 1,
                          .hidden = c->hidden,
                          .selected = selected,
                          .n_selected = n_selected,
                          .origin = c->shuffle ? dense_of : NULL,
                          .mean = (float)mean,
                          .std = c->method->needs_moments ? (float)std : 0.02f};
    if (down)
        mgr_expert_down_rows(c->method, &x, 0, c->hidden, dense, MGR_DTYPE_BF16, out, c->to);
    else
        mgr_expert_rows(c->method, &x, 0, c->neurons, dense, 0, MGR_DTYPE_BF16, out, c->to);
}

static void test_golden_experts(void)
{
    golden_file g;
    int n_cases = 0;

    CHECK(golden_open(&g, "golden_experts.txt"));
    while (g.file && golden_line(&g)) {
        CHECK_TEXT(golden_token(&g), "case");
        const golden_case c = read_case(&g);
        CHECK(c.method && mgr_dtype_is_weight(c.to));
        for (int m = 0; m < MGR_MATRIX_COUNT; m++) {
            static const char *const names[] = {"gate", "up", "down"};
            const size_t n = (size_t)c.neurons * c.hidden, bytes = mgr_dtype_size(c.to);
            unsigned char got[MAX_ENTRIES * 4];
            uint64_t expected[MAX_ENTRIES];

            CHECK(golden_line(&g));
            CHECK_TEXT(golden_token(&g), names[m]);
            CHECK(golden_colon(&g));
            CHECK_INT(golden_rest(&g, 16, expected, MAX_ENTRIES), n);
            build_matrix(&c, (mgr_matrix)m, got);
            for (size_t i = 0; i < n; i++) {
                uint32_t bits = 0;
                memcpy(&bits, got + i * bytes, bytes); /* little-endian, as the formats are */
                CHECK_INT(bits, expected[i]);
            }
        }
        n_cases++;
    }
    CHECK_INT(n_cases, 7);
}

static void test_golden_routers(void)
{
    golden_file g;
    int n_lines = 0;

    CHECK(golden_open(&g, "golden_routers.txt"));
    while (g.file && golden_line(&g)) {
        unsigned char got[MAX_ENTRIES * 4];
        uint64_t expected[MAX_ENTRIES];
        const mgr_router router = mgr_router_find(golden_token(&g));
        const double std = golden_real(&g);
        const uint64_t seed = golden_number(&g, 10);
        const uint32_t layer = (uint32_t)golden_number(&g, 10);
        const uint32_t experts = (uint32_t)golden_number(&g, 10);
        const uint64_t hidden = golden_number(&g, 10);
        const mgr_dtype to = mgr_dtype_from_name(golden_token(&g));
        const size_t bytes = mgr_dtype_size(to);

        CHECK(golden_colon(&g));
        CHECK(router < MGR_ROUTER_COUNT && mgr_dtype_is_weight(to));
        CHECK_INT(golden_rest(&g, 16, expected, MAX_ENTRIES), experts * hidden);
        const mgr_router_recipe recipe = {.kind = router, .std = std, .seed = seed, .group = 1};
        mgr_router_fill(&recipe, layer, experts, hidden, got, to);
        for (size_t i = 0; i < experts * hidden; i++) {
            uint32_t bits = 0;
            memcpy(&bits, got + i * bytes, bytes);
            CHECK_INT(bits, expected[i]);
        }
        n_lines++;
    }
    CHECK_INT(n_lines, 8);
}

/* ---- methods by their definition ---- */

#define MAX_HIDDEN 600

/* The draws of the k-th neuron of S, in float32; draws by any other cut are test_kern's affair. */
static void define_draws(const mgr_method *method, const mgr_expert *x, uint32_t k,
                         float draws[MAX_HIDDEN])
{
    const bool drop = strcmp(method->name, "drop") == 0;
    const uint32_t purpose = drop ? MGR_PURPOSE_GATE : MGR_PURPOSE_NOISE_GATE;
    const mgr_stream s = {x->seed, purpose + (uint32_t)x->matrix, x->layer, x->expert};
    if (drop)
        mgr_normals_scaled(&s, k * x->hidden, (size_t)x->hidden, x->mean, x->std, draws,
                           MGR_DTYPE_F32);
    else
        mgr_normals(&s, k * x->hidden, (size_t)x->hidden, draws);
}

/* One element of an expert, from the definition in mgr/upcycle.h. `k` is the neuron's place in S,
 * `draw` what was drawn for the element. */
static void define_element(const mgr_method *method, const mgr_expert *x, uint32_t neuron,
                           uint32_t k, uint64_t h, float draw, const unsigned char *source,
                           mgr_dtype from, unsigned char *out, mgr_dtype to)
{
    const uint32_t origin = x->origin ? x->origin[neuron] : neuron;
    const size_t at = (size_t)(x->matrix == MGR_MATRIX_DOWN ? h * x->source_width + origin
                                                            : origin * x->hidden + h);
    float value;
    source += at * mgr_dtype_size(from);
    mgr_cast(&value, MGR_DTYPE_F32, source, from, 1);
    if (k == x->n_selected || strcmp(method->name, "naive") == 0) {
        if (x->scale == 1) { /* bit for bit, NaN too */
            mgr_cast(out, to, source, from, 1);
            return;
        }
    } else if (strcmp(method->name, "drop") == 0) {
        value = draw;
    } else {
        const float noise = x->std * draw;
        value += noise;
    }
    value *= x->scale;
    mgr_cast(out, to, &value, MGR_DTYPE_F32, 1);
}

static void define_matrix(const mgr_method *method, const mgr_expert *x,
                          const unsigned char *source, mgr_dtype from, unsigned char *out,
                          mgr_dtype to)
{
    const size_t bytes = mgr_dtype_size(to);
    uint32_t next = 0;
    for (uint32_t i = 0; i < x->width; i++) {
        const bool selected = next < x->n_selected && x->selected[next] == i;
        const uint32_t k = selected ? next++ : x->n_selected;
        float draws[MAX_HIDDEN] = {0};
        if (selected)
            define_draws(method, x, k, draws);
        for (uint64_t h = 0; h < x->hidden; h++) {
            const size_t at =
                (size_t)(x->matrix == MGR_MATRIX_DOWN ? h * x->width + i : i * x->hidden + h);
            define_element(method, x, i, k, h, draws[h], source, from, out + at * bytes, to);
        }
    }
}

/* The same matrix by calls on random runs of rows, each with no more source rows than it needs. */
static void call_in_runs(const mgr_method *method, const mgr_expert *x, const unsigned char *source,
                         mgr_dtype from, unsigned char *out, mgr_dtype to)
{
    const int down = x->matrix == MGR_MATRIX_DOWN;
    const uint64_t rows = down ? x->hidden : x->width;
    const size_t from_row = (size_t)(down ? x->source_width : x->hidden) * mgr_dtype_size(from);
    const size_t to_row = (size_t)(down ? x->width : x->hidden) * mgr_dtype_size(to);

    for (uint64_t r = 0; r < rows;) {
        const uint64_t n = mix() % (rows - r) + 1;
        if (down) {
            mgr_expert_down_rows(method, x, r, n, source + r * from_row, from, out + r * to_row,
                                 to);
        } else {
            const uint32_t first = x->origin ? 0 : (uint32_t)r;
            mgr_expert_rows(method, x, (uint32_t)r, (uint32_t)n, source + first * from_row, first,
                            from, out + r * to_row, to);
        }
        r += n;
    }
}

/* Every matrix of expert 5 by every method, in one of 9 pairs of types. */
static void check_recipe(const mgr_recipe *r, uint64_t hidden, float scale, int variant)
{
    const mgr_dtype from = weights[variant % 3], to = weights[variant / 3 % 3];
    const size_t n = r->source_width * (size_t)hidden, made = r->width * (size_t)hidden;
    const mgr_stream s = {r->seed, MGR_PURPOSE_SYNTH, 1, 2};
    unsigned char *source, *expected, *got;
    uint32_t *selected, *origin;
    mgr_err err = MGR_ERR_INIT;

    CHECK_INT(mgr_alloc(&source, n, 4, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&expected, made + 1, 4, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&got, made + 1, 4, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&selected, r->n_selected, 3 * sizeof *selected, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&origin, r->width, sizeof *origin, &err), MGR_OK);
    mgr_normals_scaled(&s, 0, n, 0.001f, 0.03f, source, from);
    for (size_t i = 0; mgr_method_at(i); i++) {
        const mgr_method *const method = mgr_method_at(i);
        const size_t per_set = r->independent ? r->n_selected : 0;
        mgr_map map = {.origin = mgr_recipe_has_origin(r) ? origin : NULL,
                       .selected = {selected, selected + per_set, selected + 2 * per_set}};
        CHECK_INT(method->map(r, 9, 5, &map, &err), MGR_OK);
        for (int m = 0; m < MGR_MATRIX_COUNT; m++) {
            CHECK(map.scale[m] == 1);
            const mgr_expert x = {.seed = r->seed,
                                  .layer = 9,
                                  .expert = 5,
                                  .matrix = (mgr_matrix)m,
                                  .width = r->width,
                                  .source_width = r->source_width,
                                  .hidden = hidden,
                                  .selected = map.selected[m],
                                  .n_selected = method->needs_selection ? r->n_selected : 0,
                                  .origin = map.origin,
                                  .scale = scale,
                                  .mean = -0.002f,
                                  .std = 0.02f};
            memset(expected, 0x5a, (made + 1) * 4);
            memset(got, 0x5a, (made + 1) * 4);
            define_matrix(method, &x, source, from, expected, to);
            call_in_runs(method, &x, source, from, got, to);
            CHECK(memcmp(got, expected, (made + 1) * 4) == 0);
        }
    }
    mgr_free(source);
    mgr_free(expected);
    mgr_free(got);
    mgr_free(selected);
    mgr_free(origin);
}

static void check_shape(uint32_t slices, uint32_t width, uint64_t hidden, double ratio, int shuffle,
                        int variant)
{
    const mgr_recipe r = {.seed = mix(),
                          .source_width = slices * width,
                          .width = width,
                          .n_selected = mgr_selected_count(ratio, width),
                          .shuffle = shuffle,
                          .independent = variant % 2,
                          .scale = {1, 1, 1}};
    static const float scales[] = {1, 1, 1.25f};
    check_recipe(&r, hidden, scales[variant % 5 % 3], variant);
}

static void test_shapes(void)
{
    for (int i = 0; i < 90; i++) {
        const uint32_t neurons = (uint32_t)(mix() % 60) + 1;
        const uint64_t hidden = mix() % 70 + 1;
        static const double ratios[] = {0.5, 0, 1, 0.1, 0.75};
        check_shape(i % 4 == 3 ? 3 : 1, neurons, hidden, ratios[i % 5], i / 3 % 2, i);
    }
}

/* More than one strip of neurons; hidden sizes that are a multiple of 4, where down is drawn in
 * rows, and another. */
static void test_strips(void)
{
    check_shape(1, 4133, 8, 0.99, 0, 0);
    check_shape(1, 4133, 4, 1, 0, 0);
    check_shape(1, 4200, 4, 1, 1, 3);
    check_shape(1, 1060, 12, 0.5, 0, 6);
    check_shape(1, 1060, 5, 1, 0, 2);
}

/* More than one tile of selected neurons, and tile along the hidden size. */
static void test_large_shapes(void)
{
    check_shape(1, 1100, 140, 0.5, 0, 0);
    check_shape(1, 1100, 140, 0.3, 1, 8);
    check_shape(1, 2049, 20, 0.99, 1, 0);
    check_shape(1, 40, 530, 0.5, 0, 2);
    check_shape(2, 1100, 40, 0.5, 0, 7);
}

/* Expert e takes the neurons of slice e mod N; each neuron of it once, whatever their order. */
static void test_slices(void)
{
    enum { WIDTH = 6, SLICES = 4 };
    mgr_err err = MGR_ERR_INIT;
    for (uint32_t expert = 0; expert < 9; expert++)
        for (int shuffle = 0; shuffle < 2; shuffle++) {
            const mgr_recipe r = {.seed = 3,
                                  .source_width = WIDTH * SLICES,
                                  .width = WIDTH,
                                  .n_selected = 3,
                                  .shuffle = shuffle,
                                  .scale = {1, 1, 1}};
            uint32_t origin[WIDTH], selected[3], seen = 0;
            mgr_map map = {.origin = origin, .selected = {selected, selected, selected}};
            CHECK_INT(mgr_method_find("drop")->map(&r, 1, expert, &map, &err), MGR_OK);
            for (uint32_t i = 0; i < WIDTH; i++) {
                CHECK_INT(origin[i] / WIDTH, expert % SLICES);
                seen |= 1u << origin[i] % WIDTH;
                if (!shuffle)
                    CHECK_INT(origin[i] % WIDTH, i);
            }
            CHECK_INT(seen, (1u << WIDTH) - 1);
            CHECK(selected[0] < selected[1] && selected[1] < selected[2] && selected[2] < WIDTH);
        }
}

/* Part of the rows with a permutation: only the dense rows that the caller has. */
static void test_dense_window(void)
{
    static const uint32_t dense_of[4] = {3, 2, 1, 0}, selected[1] = {3};
    const float window[2][2] = {{20, 21}, {30, 31}}; /* dense rows 2 and 3 */
    float out[2][2];
    const mgr_expert x = {.width = 4,
                          .source_width = 4,
                          .hidden = 2,
                          .selected = selected,
                          .n_selected = 1,
                          .origin = dense_of,
                          .scale = 1,
                          .std = 1};

    mgr_expert_rows(mgr_method_find("drop"), &x, 0, 2, window, 2, MGR_DTYPE_F32, out,
                    MGR_DTYPE_F32);
    CHECK(out[0][0] == 30 && out[0][1] == 31 && out[1][0] == 20 && out[1][1] == 21);
}

static void test_method_table(void)
{
    static const char *const names[] = {"drop",         "naive",      "noise", "branch-train-mix",
                                        "from-scratch", "concatenate"};
    const size_t n = sizeof names / sizeof names[0];
    for (size_t i = 0; i < n; i++) {
        CHECK_TEXT(mgr_method_at(i)->name, names[i]);
        CHECK(mgr_method_find(names[i]) == mgr_method_at(i));
    }
    CHECK(mgr_method_at(n) == NULL);
    CHECK(mgr_method_find("dropp") == NULL);
    CHECK(mgr_method_find("drop")->needs_moments && mgr_method_find("drop")->needs_selection);
    CHECK(!mgr_method_find("naive")->needs_selection);
    CHECK(mgr_method_find("noise")->needs_selection && !mgr_method_find("noise")->needs_moments);
}

/* As Python's int(ratio * F). */
static void test_selected_count(void)
{
    CHECK_INT(mgr_selected_count(0.5, 14336), 7168);
    CHECK_INT(mgr_selected_count(0, 14336), 0);
    CHECK_INT(mgr_selected_count(1, 14336), 14336);
    CHECK_INT(mgr_selected_count(0.29, 100), 28); /* 0.29 * 100 is 28.999999999999996 */
    CHECK_INT(mgr_selected_count(0.1, 9), 0);
    CHECK_INT(mgr_selected_count(0.75, 4294967295u), 3221225471u);
}

/* What each init promises, on a router of a usual size. */
static void test_router_statistics(void)
{
    enum { experts = 8, hidden = 4096, n = experts * hidden };
    static float values[n];
    static const double stds[] = {0.02, 0.28867513459481287, 0.28867513459481287, 0.5};

    for (int r = 0; r <= MGR_ROUTER_NORMAL; r++) {
        double sum = 0, square = 0, low = 9, high = -9;
        const mgr_router_recipe recipe = {
            .kind = (mgr_router)r, .std = 0.5, .seed = 77, .group = 1};
        mgr_router_fill(&recipe, 3, experts, hidden, values, MGR_DTYPE_F32);
        for (int i = 0; i < n; i++) {
            sum += values[i];
            square += (double)values[i] * values[i];
            low = fmin(low, values[i]);
            high = fmax(high, values[i]);
        }
        const double mean = sum / n, std = sqrt(square / n - mean * mean);
        CHECK(fabs(std - stds[r]) < 0.02 * stds[r]);
        if (r == MGR_ROUTER_UNIFORM)
            CHECK(fabs(mean) < 1e-9 && high < 0.0351 && low > -0.0351);
        if (r == MGR_ROUTER_UNIFORM01)
            CHECK(fabs(mean - 0.5) < 0.01 && low >= 0 && high <= 1);
        if (r == MGR_ROUTER_UNIFORM01_CENTRED)
            CHECK(fabs(mean) < 1e-8 && high < 0.51 && low > -0.51);
        if (r == MGR_ROUTER_NORMAL)
            CHECK(fabs(mean) < 0.02 && high > 1.5);
    }
}

static void test_router_names(void)
{
    for (int r = 0; r < MGR_ROUTER_COUNT; r++)
        CHECK_INT(mgr_router_find(mgr_router_name((mgr_router)r)), r);
    CHECK_INT(mgr_router_find("uniform02"), MGR_ROUTER_COUNT);
    CHECK_INT(mgr_router_find("uniform01-centred"), MGR_ROUTER_UNIFORM01_CENTRED);
    CHECK_TEXT(mgr_router_name(MGR_ROUTER_COUNT), "unknown");
}

int main(void)
{
    for (int simd = 0; simd < MGR_SIMD_COUNT; simd++) {
        mgr_err err = MGR_ERR_INIT;
        if (!mgr_simd_available((mgr_simd)simd))
            continue;
        CHECK_INT(mgr_simd_select((mgr_simd)simd, &err), MGR_OK);
        test_golden_experts();
        test_golden_routers();
        test_shapes();
        test_strips();
    }
    test_large_shapes();
    test_slices();
    test_dense_window();
    test_method_table();
    test_selected_count();
    test_router_statistics();
    test_router_names();
    return CHECK_DONE();
}
