/* engine/: lists of extents, files held open, the journal, what is recalled of it, selections. */
#include <libdeflate.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/mem.h"
#include "engine/engine.h"
#include "engine/journal.h"
#include "engine/recall.h"
#include "support/folder.h"

enum { ROWS = 8, COLS = 16, BYTES = ROWS * COLS * 2, UNITS = 2 };

static mgr_err err;

/* ---- a job of one tensor, copied from the one side to the other in two units ---- */

static mgr_job job;
static mgr_piece pieces[UNITS];
static mgr_unit units[UNITS];
static unsigned char weights[BYTES];

static void add_side(mgr_side *side, const char *path)
{
    const mgr_stored stored = {.name = "embedding",
                               .record = MGR_NONE,
                               .dtype = MGR_DTYPE_BF16,
                               .ndim = 2,
                               .shape = {ROWS, COLS},
                               .stride = {COLS, 1}};
    uint32_t file;
    CHECK_INT(mgr_catalogue_add_file(&side->cat, path, BYTES, &file, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_add_stored(&side->cat, &stored, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&side->tensors.list, 1, sizeof *side->tensors.list, &err), MGR_OK);
    side->tensors.n = 1;
    side->tensors.list[0] = (mgr_tensor){.role = MGR_ROLE_EMBEDDING,
                                         .layer = MGR_NONE,
                                         .expert = MGR_NONE,
                                         .rows = ROWS,
                                         .cols = COLS,
                                         .step = 1};
    side->layout.cat = &side->cat;
    side->layout.tensors = &side->tensors;
}

static void set_up(void)
{
    static mgr_define define = {MGR_OP_COPY, 0};
    CHECK_INT(mgr_comm_alone(&job.comm, &err), MGR_OK);
    job.ranks = 1;
    snprintf(job.id, sizeof job.id, "job");
    add_side(&job.source, "from");
    add_side(&job.target, "to");
    job.defines = &define;
    for (uint32_t u = 0; u < UNITS; u++) {
        pieces[u] = (mgr_piece){0, MGR_NONE, u * ROWS / UNITS, ROWS / UNITS};
        units[u] = (mgr_unit){.piece = u, .n_pieces = 1};
    }
    job.plan = (mgr_plan){.pieces = pieces, .units = units, .n_pieces = UNITS, .n_units = UNITS};
    for (size_t i = 0; i < BYTES; i++)
        weights[i] = (unsigned char)(i * 31);
}

static void tear_down(void)
{
    mgr_side *const sides[] = {&job.source, &job.target};
    for (int i = 0; i < 2; i++) {
        mgr_free(sides[i]->tensors.list);
        mgr_catalogue_clear(&sides[i]->cat);
    }
    mgr_comm_stop(job.comm);
}

static mgr_extent extent_of(uint32_t unit)
{
    const uint64_t bytes = BYTES / UNITS;
    return (mgr_extent){.crc32 = libdeflate_crc32(0, weights + unit * bytes, bytes),
                        .offset = unit * bytes,
                        .bytes = bytes,
                        .unit = unit};
}

/* ---- extents ---- */

static void test_a_place_in_a_list(void)
{
    static const uint32_t entries[] = {1, 1, 4, 4, 4, 9};
    static const struct {
        uint32_t what;
        size_t at;
    } rows[] = {{0, 0}, {1, 0}, {2, 2}, {4, 2}, {5, 5}, {9, 5}, {10, 6}, {MGR_NONE, 6}};
    mgr_extents list = {0};
    CHECK_INT(mgr_extents_find(&list, 3), 0);
    for (size_t i = 0; i < 6; i++)
        CHECK_INT(mgr_extents_add(&list, &(mgr_extent){.what = entries[i]}, &err), MGR_OK);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK_INT(mgr_extents_find(&list, rows[i].what), rows[i].at);
    mgr_free(list.list);
}

static void test_files_held_open(void)
{
    enum { FILES = 300 }; /* more than are held at a time */
    uint32_t file;
    mgr_catalogue cat = {0};
    mgr_open_files files;
    char directory[512];
    int fd = -1;
    snprintf(directory, sizeof directory, "%s", in_folder("many"));
    CHECK_INT(mgr_make_dir(directory, &err), MGR_OK);
    for (int i = 0; i < FILES; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        CHECK_INT(mgr_catalogue_add_file(&cat, name, 1, &file, &err), MGR_OK);
    }
    put_file("many/0", "first");
    put_file("many/299", "last");
    CHECK_INT(mgr_open_files_init(&files, &cat, directory, false, &err), MGR_OK);
    CHECK_INT(mgr_open_files_get(&files, 1, &fd, &err), MGR_ERR_NOT_FOUND);
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_open_files_get(&files, 299, &fd, &err), MGR_OK);
    for (int i = 1; i < FILES - 1; i++) {
        char name[32];
        snprintf(name, sizeof name, "many/%d", i);
        put_file(name, "");
        CHECK_INT(mgr_open_files_get(&files, (uint32_t)i, &fd, &err), MGR_OK);
    }
    CHECK(files.n_open <= 256 && files.list[299].fd < 0); /* closed to make room, */
    char text[5] = "";
    CHECK_INT(mgr_open_files_get(&files, 299, &fd, &err), MGR_OK); /* and opened again */
    CHECK(pread(fd, text, 4, 0) == 4);
    CHECK_TEXT(text, "last");
    CHECK_INT(mgr_open_files_close(&files, false, &err), MGR_OK);
    CHECK_INT(files.n_open, 0);
    mgr_free(files.list);
    mgr_catalogue_clear(&cat);
}

static int n_syncs;

int fsync(int fd) /* in the place of the system's */
{
    n_syncs++;
    return (int)syscall(SYS_fsync, fd);
}

/* What was synced is not synced again until it is asked for anew; nothing that was is left out. */
static void test_only_what_was_written_is_synced(void)
{
    mgr_catalogue cat = {0};
    mgr_open_files files;
    uint32_t file;
    int fd;
    const char *const names[] = {"synced-0", "synced-1", "synced-2"};
    for (int i = 0; i < 3; i++) {
        put_file(names[i], "");
        CHECK_INT(mgr_catalogue_add_file(&cat, names[i], 0, &file, &err), MGR_OK);
    }
    static const struct {
        bool gets[3], closes;
        int syncs;
    } steps[] = {{{1, 1, 0}, 0, 2}, {{0, 0, 0}, 0, 0}, {{0, 1, 1}, 0, 2},
                 {{1, 0, 0}, 1, 1}, {{1, 1, 1}, 1, 3}, {{0, 0, 0}, 1, 0}};
    CHECK_INT(mgr_open_files_init(&files, &cat, folder_path, true, &err), MGR_OK);
    for (size_t s = 0; s < sizeof steps / sizeof steps[0]; s++) {
        for (uint32_t i = 0; i < 3; i++)
            if (steps[s].gets[i])
                CHECK_INT(mgr_open_files_get(&files, i, &fd, &err), MGR_OK);
        n_syncs = 0;
        CHECK_INT(steps[s].closes ? mgr_open_files_close(&files, false, &err)
                                  : mgr_open_files_sync(&files, &err),
                  MGR_OK);
        CHECK_INT(n_syncs, steps[s].syncs);
    }
    mgr_free(files.list);
    mgr_catalogue_clear(&cat);
}

/* ---- reading ---- */

enum { COLUMNS = COLS / 2 }; /* of a box that has not all of a row */

/* What the unit of all rows holds, read by boxes of `columns` columns from a file of that layout.
 */
static void read_all(mgr_engine *e, uint64_t columns)
{
    const mgr_unit all = {.n_pieces = 1, .in_bytes = BYTES};
    mgr_box boxes[2] = {{.rows = ROWS, .cols = columns, .row_stride = columns},
                        {.rows = ROWS, .cols = columns, .col = columns, .row_stride = columns}};
    size_t first_box[2] = {0, COLS / columns};
    mgr_dtype type = MGR_DTYPE_BF16;
    boxes[1].stored = columns < COLS;
    job.source.layout.boxes = boxes;
    job.source.layout.first_box = first_box;
    job.source.layout.types = &type;
    CHECK_INT(mgr_engine_read(e, &all, NULL, e->unit.at, false, &err), MGR_OK);
    job.source.layout.boxes = NULL;
    job.source.layout.first_box = NULL;
    job.source.layout.types = NULL;
}

static void write_source(const void *bytes)
{
    FILE *const f = fopen(in_folder("from"), "wb");
    CHECK(f && fwrite(bytes, 1, BYTES, f) == BYTES && fclose(f) == 0);
}

/* The same rows as two halves of columns, the second behind the first. */
static void halve(unsigned char *to)
{
    for (size_t r = 0; r < ROWS; r++)
        for (size_t half = 0; half < 2; half++)
            memcpy(to + half * BYTES / 2 + r * COLUMNS * 2,
                   weights + (r * COLS + half * COLUMNS) * 2, COLUMNS * 2);
}

static unsigned char unit[BYTES], bounce[BYTES];

static void test_rows_are_read_to_their_place(mgr_engine *e)
{
    static unsigned char halves[BYTES];
    write_source(weights);
    memset(bounce, 0x5a, BYTES);
    read_all(e, COLS);
    CHECK(memcmp(unit, weights, BYTES) == 0 && bounce[0] == 0x5a); /* with no copy on the way */
    halve(halves);
    write_source(halves);
    read_all(e, COLUMNS);
    CHECK(memcmp(unit, weights, BYTES) == 0);
}

static void test_what_is_written_often_is_summed_once(mgr_engine *e)
{
    static unsigned char other[BYTES];
    const uint32_t sum = libdeflate_crc32(0, weights, BYTES);
    write_source(weights);
    read_all(e, COLS);
    CHECK_INT(mgr_engine_crc(e, unit, BYTES), sum);
    CHECK_INT(mgr_engine_crc(e, unit, BYTES), sum);
    CHECK_INT(e->n_known, 1); /* the second was not summed again */
    CHECK_INT(mgr_engine_crc(e, unit, BYTES / 2), libdeflate_crc32(0, weights, BYTES / 2));
    memcpy(bounce, weights, BYTES);
    CHECK_INT(mgr_engine_crc(e, bounce, BYTES), sum);
    bounce[3] ^= 1; /* a buffer that is written to is summed each time */
    CHECK(mgr_engine_crc(e, bounce, BYTES) != sum);
    for (size_t i = 0; i < BYTES; i++)
        other[i] = (unsigned char)~weights[i];
    write_source(other); /* and what is read in the place of it is, too */
    read_all(e, COLS);
    CHECK_INT(mgr_engine_crc(e, unit, BYTES), libdeflate_crc32(0, other, BYTES));
}

static void with_a_reader(void (*test)(mgr_engine *))
{
    const mgr_stored half = {.name = "right",
                             .record = MGR_NONE,
                             .dtype = MGR_DTYPE_BF16,
                             .ndim = 2,
                             .offset = BYTES / 2,
                             .shape = {ROWS, COLUMNS},
                             .stride = {COLUMNS, 1}};
    const mgr_piece saved = pieces[0];
    mgr_engine e = {.job = &job, .unit = {.at = unit}, .bounce = {.at = bounce}};
    CHECK_INT(mgr_catalogue_add_stored(&job.source.cat, &half, &err), MGR_OK);
    CHECK_INT(mgr_open_files_init(&e.read_files, &job.source.cat, folder_path, false, &err),
              MGR_OK);
    pieces[0] = (mgr_piece){0, MGR_NONE, 0, ROWS};
    job.plan.unit_bytes = job.plan.chunk_bytes = BYTES;
    test(&e);
    CHECK_INT(mgr_open_files_close(&e.read_files, true, &err), MGR_OK);
    mgr_free(e.read_files.list);
    mgr_free(e.items);
    pieces[0] = saved;
    job.plan.unit_bytes = job.plan.chunk_bytes = 0;
    job.source.cat.n_stored = 1;
}

/* ---- the journal ---- */

/* Journal both units, each in a block of its own. */
static void write_journal(void)
{
    mgr_journal journal;
    mgr_open_files files;
    mgr_extents read = {0}, written = {0};
    CHECK_INT(mgr_open_files_init(&files, &job.target.cat, folder_path, true, &err), MGR_OK);
    CHECK_INT(mgr_make_dirs(in_folder("journal"), &err), MGR_OK);
    CHECK_INT(mgr_journal_open(&journal, &job, in_folder("journal"), 7, 0, &err), MGR_OK);
    for (uint32_t u = 0; u < UNITS; u++) {
        const mgr_extent e = extent_of(u);
        CHECK_INT(mgr_extents_add(&written, &e, &err), MGR_OK);
        mgr_journal_unit(&journal, u);
        CHECK_INT(journal.state[u], MGR_UNIT_WRITTEN);
        CHECK(mgr_journal_is_due(&journal));
        CHECK_INT(mgr_journal_flush(&journal, &files, &read, &written, &err), MGR_OK);
        CHECK_INT(journal.state[u], MGR_UNIT_JOURNALED);
    }
    mgr_journal_close(&journal);
    mgr_free(files.list);
    mgr_free(written.list);
}

static unsigned blocks_in(const mgr_buf *text, uint64_t fingerprint)
{
    mgr_journal_block block;
    size_t at = 0;
    unsigned n = 0;
    while (mgr_journal_next(text, fingerprint, &at, &block))
        n++;
    return n;
}

static void test_a_torn_or_spoiled_journal(void)
{
    const uint64_t fingerprint = mgr_journal_fingerprint(&job);
    mgr_buf text = {0};
    CHECK_INT(mgr_read_file(in_folder("journal/rank-00007"), 4096, &text, &err), MGR_OK);
    CHECK_INT(blocks_in(&text, fingerprint), 2);
    CHECK_INT(blocks_in(&text, fingerprint + 1), 0);
    const size_t whole = text.len, block = whole / 2;
    for (text.len = 0; text.len < whole; text.len++)
        CHECK_INT(blocks_in(&text, fingerprint), text.len / block);
    for (size_t bit = 0; bit < 8 * whole; bit += 3) {
        text.data[bit / 8] ^= (char)(1 << bit % 8);
        CHECK_INT(blocks_in(&text, fingerprint), bit / 8 / block);
        text.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    mgr_buf_clear(&text);
}

static void test_what_a_journal_is_of(void)
{
    const uint64_t before = mgr_journal_fingerprint(&job);
    uint64_t *const facts[] = {&job.source.cat.files[0].bytes, &job.source.cat.files[0].modified,
                               &job.source.cat.files[0].inode, &job.target.cat.stored[0].shape[0]};
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        ++*facts[i];
        CHECK(mgr_journal_fingerprint(&job) != before);
        --*facts[i];
    }
    job.id[0] = 'J';
    CHECK(mgr_journal_fingerprint(&job) != before);
    job.id[0] = 'j';
    job.target.cat.stored[0].offset = 64; /* a library may place tensors only later */
    units[0].rank = 5;                    /* nor is it of the plan */
    CHECK(mgr_journal_fingerprint(&job) == before);
    job.target.cat.stored[0].offset = 0;
    units[0].rank = 0;
}

/* ---- recall ---- */

static void put_weights(size_t bytes)
{
    FILE *const f = fopen(in_folder("to"), "wb");
    CHECK(f && fwrite(weights, 1, bytes, f) == bytes && fclose(f) == 0);
}

static void check_recall(size_t done, uint64_t first_row)
{
    mgr_recall recall;
    CHECK_INT(mgr_recall_make(&recall, &job, in_folder("journal"), folder_path, NULL, &err),
              MGR_OK);
    CHECK_INT(recall.n_done, done);
    CHECK_INT(recall.written.n, done);
    CHECK_INT(recall.next_number, 8);
    if (recall.n_done == done && done)
        CHECK_INT(recall.done[0].row, first_row);
    mgr_recall_clear(&recall);
}

static void test_what_is_recalled_was_read_back(void)
{
    put_weights(BYTES);
    check_recall(2, 0);
    weights[BYTES - 1] ^= 1;
    put_weights(BYTES);
    check_recall(1, 0);
    weights[BYTES - 1] ^= 1;
    weights[0] ^= 1;
    put_weights(BYTES);
    check_recall(1, ROWS / UNITS);
    weights[0] ^= 1;
    put_weights(BYTES);
    job.id[0] = 'J'; /* the journal of another configuration */
    check_recall(0, 0);
    job.id[0] = 'j';
}

/* A journal with a right hash may still name what no plan cuts. */
static void test_what_no_plan_cuts_is_not_believed(void)
{
    static const mgr_piece rows[] = {{0, MGR_NONE, 0, 0},           {0, MGR_NONE, ROWS, 1},
                                     {0, MGR_NONE, 1, ROWS},        {1, MGR_NONE, 0, ROWS},
                                     {MGR_NONE, 0, 0, ROWS},        {0, MGR_NONE, UINT64_MAX, 2},
                                     {MGR_NONE, MGR_NONE, 0, ROWS}, {0, MGR_NONE, 0, UINT64_MAX}};
    const mgr_piece right = pieces[0];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pieces[0] = rows[i];
        CHECK_INT(unlink(in_folder("journal/rank-00007")), 0);
        write_journal();
        check_recall(1, ROWS / UNITS);
    }
    pieces[0] = right;
}

/* ---- selections ---- */

static void test_a_selection_is_the_methods_map(void)
{
    enum { WIDTH = 32, EXPERTS = 3 };
    uint32_t selected[3][WIDTH], origin[WIDTH];
    mgr_map map = {.origin = origin, .selected = {selected[0], selected[1], selected[2]}};
    mgr_selection s;
    job.method = mgr_method_find("drop");
    job.target.tensors.model.experts = EXPERTS;
    job.recipe = (mgr_recipe){.seed = 5,
                              .source_width = WIDTH,
                              .width = WIDTH,
                              .n_selected = 11,
                              .shuffle = true,
                              .independent = true};
    CHECK(mgr_selection_bytes(&job) >= EXPERTS * (3 * 11 + WIDTH) * sizeof(uint32_t));
    CHECK_INT(mgr_selection_init(&s, &job, &err), MGR_OK);
    for (uint32_t layer = 0; layer < 2; layer++) {
        CHECK_INT(mgr_selection_set(&s, &job, layer, NULL, &err), MGR_OK);
        for (uint32_t e = 0; e < EXPERTS; e++) {
            CHECK_INT(job.method->map(&job.recipe, layer, e, &map, &err), MGR_OK);
            CHECK(memcmp(s.maps[e].origin, origin, sizeof origin) == 0);
            for (int m = 0; m < 3; m++) {
                const mgr_expert x = mgr_selection_expert(&s, &job, e, (mgr_matrix)m);
                CHECK_INT(x.layer, layer);
                CHECK_INT(x.n_selected, 11);
                CHECK(memcmp(x.selected, selected[m], 11 * sizeof selected[m][0]) == 0);
            }
        }
    }
    mgr_selection_clear(&s);
    job.method = NULL;
    CHECK_INT(mgr_selection_bytes(&job), 0);
}

int main(void)
{
    folder_begin();
    set_up();
    test_a_place_in_a_list();
    test_files_held_open();
    test_only_what_was_written_is_synced();
    with_a_reader(test_rows_are_read_to_their_place);
    with_a_reader(test_what_is_written_often_is_summed_once);
    write_journal();
    test_a_torn_or_spoiled_journal();
    test_what_a_journal_is_of();
    test_what_is_recalled_was_read_back();
    test_what_no_plan_cuts_is_not_believed();
    test_a_selection_is_the_methods_map();
    tear_down();
    folder_end();
    return CHECK_DONE();
}
