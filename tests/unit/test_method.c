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
                          .n_neurons = c->neurons,
                          .hidden = c->hidden,
                          .selected = selected,
                          .n_selected = n_selected,
                          .dense_of = c->shuffle ? dense_of : NULL,
                          .mean = (float)mean,
                          .std = c->method->needs_moments ? (float)std : 0.02f};
    if (down)
        c->method->hidden_rows(&x, 0, c->hidden, dense, MGR_DTYPE_BF16, out, c->to);
    else
        c->method->neuron_rows(&x, 0, c->neurons, dense, 0, MGR_DTYPE_BF16, out, c->to);
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
        mgr_router_fill(router, std, seed, layer, experts, hidden, got, to);
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

/* One element of an expert, from the definition in mgr/upcycle.h. */
static void define_element(const mgr_method *method, const mgr_expert *x, uint32_t neuron,
                           uint64_t h, const unsigned char *dense, mgr_dtype from,
                           unsigned char *out, mgr_dtype to)
{
    const uint32_t origin = x->dense_of ? x->dense_of[neuron] : neuron;
    const size_t at =
        (size_t)(x->matrix == MGR_MATRIX_DOWN ? h * x->n_neurons + origin : origin * x->hidden + h);
    mgr_stream s = {x->seed, MGR_PURPOSE_GATE + (uint32_t)x->matrix, x->layer, x->expert};
    uint32_t k = 0;

    while (k < x->n_selected && x->selected[k] != neuron)
        k++;
    const uint64_t element = k * x->hidden + h;
    dense += at * mgr_dtype_size(from);
    if (k == x->n_selected || strcmp(method->name, "naive") == 0) {
        mgr_cast(out, to, dense, from, 1);
    } else if (strcmp(method->name, "drop") == 0) {
        mgr_normals_scaled(&s, element, 1, x->mean, x->std, out, to);
    } else {
        float w, z;
        s.purpose = MGR_PURPOSE_NOISE_GATE + (uint32_t)x->matrix;
        mgr_normals(&s, element, 1, &z);
        mgr_cast(&w, MGR_DTYPE_F32, dense, from, 1);
        const float noise = x->std * z;
        w += noise;
        mgr_cast(out, to, &w, MGR_DTYPE_F32, 1);
    }
}

static void define_matrix(const mgr_method *method, const mgr_expert *x, const unsigned char *dense,
                          mgr_dtype from, unsigned char *out, mgr_dtype to)
{
    const size_t bytes = mgr_dtype_size(to);
    for (uint32_t i = 0; i < x->n_neurons; i++) {
        for (uint64_t h = 0; h < x->hidden; h++) {
            const size_t at =
                (size_t)(x->matrix == MGR_MATRIX_DOWN ? h * x->n_neurons + i : i * x->hidden + h);
            define_element(method, x, i, h, dense, from, out + at * bytes, to);
        }
    }
}

/* The same matrix by calls on random runs of rows, each with no more dense rows than it needs. */
static void call_in_runs(const mgr_method *method, const mgr_expert *x, const unsigned char *dense,
                         mgr_dtype from, unsigned char *out, mgr_dtype to)
{
    const int down = x->matrix == MGR_MATRIX_DOWN;
    const uint64_t rows = down ? x->hidden : x->n_neurons;
    const size_t cols = (size_t)(down ? x->n_neurons : x->hidden);
    const size_t from_row = cols * mgr_dtype_size(from), to_row = cols * mgr_dtype_size(to);

    for (uint64_t r = 0; r < rows;) {
        const uint64_t n = mix() % (rows - r) + 1;
        if (down) {
            method->hidden_rows(x, r, n, dense + r * from_row, from, out + r * to_row, to);
        } else {
            const uint32_t dense_first = x->dense_of ? 0 : (uint32_t)r;
            method->neuron_rows(x, (uint32_t)r, (uint32_t)n, dense + dense_first * from_row,
                                dense_first, from, out + r * to_row, to);
        }
        r += n;
    }
}

static void check_shape(uint32_t neurons, uint64_t hidden, double ratio, int shuffle, int variant)
{
    const mgr_dtype from = weights[variant % 3], to = weights[variant / 3 % 3];
    const size_t n = neurons * (size_t)hidden;
    const mgr_stream s = {mix(), MGR_PURPOSE_SHUFFLE, 1, 2};
    const uint32_t n_selected = mgr_selected_count(ratio, neurons);
    unsigned char *dense, *expected, *got;
    uint32_t *selected, *dense_of;
    mgr_err err = MGR_ERR_INIT;

    CHECK_INT(mgr_alloc(&dense, n, 4, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&expected, n + 1, 4, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&got, n + 1, 4, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&selected, neurons, sizeof *selected, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&dense_of, neurons, sizeof *dense_of, &err), MGR_OK);
    CHECK_INT(mgr_permutation(&s, neurons, dense_of, &err), MGR_OK);
    CHECK_INT(mgr_sample(&s, neurons, n_selected, selected, &err), MGR_OK);
    mgr_normals_scaled(&s, 0, n, 0.001f, 0.03f, dense, from);

    for (int m = 0; m < MGR_MATRIX_COUNT; m++) {
        const mgr_expert x = {.seed = s.seed,
                              .layer = 9,
                              .expert = 4,
                              .matrix = (mgr_matrix)m,
                              .n_neurons = neurons,
                              .hidden = hidden,
                              .selected = selected,
                              .n_selected = n_selected,
                              .dense_of = shuffle ? dense_of : NULL,
                              .mean = -0.002f,
                              .std = 0.02f};
        for (size_t i = 0; mgr_method_at(i); i++) {
            const mgr_method *method = mgr_method_at(i);
            memset(expected, 0x5a, (n + 1) * 4);
            memset(got, 0x5a, (n + 1) * 4);
            define_matrix(method, &x, dense, from, expected, to);
            call_in_runs(method, &x, dense, from, got, to);
            CHECK(memcmp(got, expected, (n + 1) * 4) == 0);
        }
    }
    mgr_free(dense);
    mgr_free(expected);
    mgr_free(got);
    mgr_free(selected);
    mgr_free(dense_of);
}

static void test_shapes(void)
{
    for (int i = 0; i < 90; i++) {
        const uint32_t neurons = (uint32_t)(mix() % 60) + 1;
        const uint64_t hidden = mix() % 70 + 1;
        static const double ratios[] = {0.5, 0, 1, 0.1, 0.75};
        check_shape(neurons, hidden, ratios[i % 5], i / 3 % 2, i);
    }
}

/* More than one strip of neurons, tile of selected ones, and tile along the hidden size. */
static void test_large_shapes(void)
{
    check_shape(1100, 140, 0.5, 0, 0);
    check_shape(1100, 140, 0.3, 1, 8);
    check_shape(2049, 20, 0.99, 1, 0);
    check_shape(40, 530, 0.5, 0, 2);
}

/* Part of the rows with a permutation: only the dense rows that the caller has. */
static void test_dense_window(void)
{
    static const uint32_t dense_of[4] = {3, 2, 1, 0}, selected[1] = {3};
    const float window[2][2] = {{20, 21}, {30, 31}}; /* dense rows 2 and 3 */
    float out[2][2];
    const mgr_expert x = {.n_neurons = 4,
                          .hidden = 2,
                          .selected = selected,
                          .n_selected = 1,
                          .dense_of = dense_of,
                          .std = 1};

    mgr_method_find("drop")->neuron_rows(&x, 0, 2, window, 2, MGR_DTYPE_F32, out, MGR_DTYPE_F32);
    CHECK(out[0][0] == 30 && out[0][1] == 31 && out[1][0] == 20 && out[1][1] == 21);
}

static void test_method_table(void)
{
    static const char *const names[] = {"drop", "naive", "noise"};
    for (size_t i = 0; i < 3; i++) {
        CHECK_TEXT(mgr_method_at(i)->name, names[i]);
        CHECK(mgr_method_find(names[i]) == mgr_method_at(i));
    }
    CHECK(mgr_method_at(3) == NULL);
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

    for (int r = 0; r < MGR_ROUTER_COUNT; r++) {
        double sum = 0, square = 0, low = 9, high = -9;
        mgr_router_fill((mgr_router)r, 0.5, 77, 3, experts, hidden, values, MGR_DTYPE_F32);
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
    }
    test_large_shapes();
    test_dense_window();
    test_method_table();
    test_selected_count();
    test_router_statistics();
    test_router_names();
    return CHECK_DONE();
}
