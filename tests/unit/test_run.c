/* run/: what was read is proven, the record of a source, staging and publishing. */
#include <libdeflate.h>
#include <unistd.h>

#include "core/mem.h"
#include "io/reader.h"
#include "run/record.h"
#include "run/seal.h"
#include "run/settle.h"
#include "run/stage.h"
#include "support/folder.h"

enum { BYTES = 64 };

static mgr_err err;
static mgr_job job;
static char source_path[512];
static unsigned char bytes[BYTES];

/* ---- a source of one file with one record, which is one tensor ---- */

static void set_up(void)
{
    const mgr_stored stored = {
        .name = "tensor", .dtype = MGR_DTYPE_BF16, .ndim = 2, .shape = {4, 8}, .stride = {8, 1}};
    mgr_record record = {.name = "data/0", .size = BYTES};
    mgr_reader reader;
    uint32_t file;
    for (int i = 0; i < BYTES; i++)
        bytes[i] = (unsigned char)(i * 7);
    record.crc32 = libdeflate_crc32(0, bytes, BYTES);
    snprintf(source_path, sizeof source_path, "%s", in_folder("source"));
    put_file("source", "what the source holds");
    CHECK_INT(mgr_comm_alone(&job.comm, &err), MGR_OK);
    job.ranks = 1;
    snprintf(job.id, sizeof job.id, "0123456789abcdef");
    CHECK_INT(mgr_reader_open(&reader, source_path, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_add_file(&job.source.cat, source_path, reader.size, &file, &err),
              MGR_OK);
    job.source.cat.files[0].modified = reader.modified;
    job.source.cat.files[0].inode = reader.inode;
    mgr_reader_close(&reader);
    CHECK_INT(mgr_catalogue_add_stored(&job.source.cat, &stored, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_add_record(&job.source.cat, &record, &file, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_add_file(&job.target.cat, "sub/model", 100, &file, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_add_file(&job.target.cat, "other", 5, &file, &err), MGR_OK);
    job.source.layout.cat = &job.source.cat;
    job.target.layout.cat = &job.target.cat;
}

/* ---- settling ---- */

typedef struct stretch {
    uint64_t offset, bytes;
} stretch;

static uint32_t n_targets = 1; /* made of the only tensor */

static int settle(const stretch *list, size_t n, uint64_t needed_rows)
{
    mgr_box box = {.rows = needed_rows, .cols = 8};
    mgr_tensor tensor = {.rows = needed_rows, .cols = 8};
    uint32_t first_target[2] = {0, n_targets};
    mgr_extents read = {0};
    job.source.tensors.list = &tensor;
    job.plan.first_target = first_target;
    job.source.layout.boxes = &box;
    job.source.layout.n_boxes = 1;
    job.tally = (mgr_tally){0};
    err = (mgr_err)MGR_ERR_INIT;
    for (size_t i = 0; i < n; i++) {
        const mgr_extent e = {.crc32 = libdeflate_crc32(0, bytes + list[i].offset, list[i].bytes),
                              .offset = list[i].offset,
                              .bytes = list[i].bytes};
        CHECK_INT(mgr_extents_add(&read, &e, &err), MGR_OK);
    }
    CHECK_INT(mgr_settle_gather(job.comm, &read, &err), MGR_OK);
    const int rc = mgr_settle_source(&job, &read, &err);
    mgr_free(read.list);
    job.source.tensors.list = NULL;
    job.plan.first_target = NULL;
    return rc;
}

/* A record of which nothing is made is not missed. */
static void test_what_is_not_needed_is_not_read(void)
{
    n_targets = 0;
    CHECK_INT(settle(NULL, 0, 4), MGR_OK);
    n_targets = 1;
    CHECK_INT(settle(NULL, 0, 4), MGR_ERR_INTERNAL);
}

static void test_what_was_read_is_proven(void)
{
    static const struct {
        stretch list[3];
        size_t n;
        uint64_t needed_rows; /* of 4 */
        int code, checked;
    } rows[] = {
        {{{0, 64}}, 1, 4, MGR_OK, 1},
        {{{48, 16}, {0, 16}, {16, 32}}, 3, 4, MGR_OK, 1}, /* in any order */
        {{{0, 16}, {32, 32}}, 2, 4, MGR_ERR_INTERNAL, 0}, /* a hole, */
        {{{0, 32}, {16, 48}}, 2, 4, MGR_ERR_INTERNAL, 0}, /* an overlap, */
        {{{0, 32}, {16, 32}}, 2, 4, MGR_ERR_INTERNAL, 0}, /* one as long as what is not there, */
        {{{0, 48}}, 1, 4, MGR_ERR_INTERNAL, 0},           /* an end that is missing, */
        {{{0, 64}, {0, 64}}, 2, 4, MGR_ERR_INTERNAL, 0},  /* all of it twice, */
        {{{0, 0}}, 0, 4, MGR_ERR_INTERNAL, 0},            /* nothing, though all is needed */
        {{{0, 32}}, 1, 2, MGR_OK, 0},                     /* of a part there is no checksum */
        {{{0, 64}}, 1, 2, MGR_OK, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_INT(settle(rows[i].list, rows[i].n, rows[i].needed_rows), rows[i].code);
        CHECK_INT(job.tally.records_checked, rows[i].checked);
        CHECK_INT(job.tally.records_total, 1);
    }
    const stretch all = {0, 64};
    job.source.cat.records[0].crc32 ^= 1; /* not what the archive says */
    CHECK_INT(settle(&all, 1, 4), MGR_ERR_FORMAT);
    CHECK_HAS(err.msg, "'data/0'");
    job.source.cat.records[0].crc32 ^= 1;
    err = (mgr_err)MGR_ERR_INIT;
}

/* ---- the record ---- */

static int check_record(bool *known)
{
    err = (mgr_err)MGR_ERR_INIT;
    return mgr_record_check(&job, in_folder("journal"), known, &err);
}

static void test_a_source_that_changed(void)
{
    mgr_catalogue *const cat = &job.source.cat;
    uint64_t *const facts[] = {&cat->files[0].bytes, &cat->files[0].modified, &cat->files[0].inode,
                               &cat->stored[0].offset, &cat->stored[0].shape[0]};
    bool known;
    CHECK_INT(mgr_make_dirs(in_folder("journal"), &err), MGR_OK);
    CHECK_INT(check_record(&known), MGR_OK);
    CHECK(!known); /* there is none */
    CHECK_INT(mgr_record_write(&job, in_folder("journal"), &err), MGR_OK);
    CHECK_INT(check_record(&known), MGR_OK);
    CHECK(known);
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        ++*facts[i];
        CHECK_INT(check_record(&known), MGR_ERR_EXISTS);
        CHECK_HAS(err.msg, source_path);
        --*facts[i];
    }
    CHECK_INT(mgr_remove_tree(in_folder("journal/" MGR_RECORD_NAME), &err), MGR_OK);
    put_file("journal/" MGR_RECORD_NAME, "{\"version\": ");
    CHECK_INT(check_record(&known), MGR_OK);
    CHECK(!known); /* cut off, it stands for nothing */
}

static void test_a_source_is_looked_at_again(void)
{
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_record_look_again(&job, &err), MGR_OK);
    job.source.cat.files[0].inode++; /* another file of the same size and time */
    CHECK_INT(mgr_record_look_again(&job, &err), MGR_ERR_FORMAT);
    job.source.cat.files[0].inode--;
    err = (mgr_err)MGR_ERR_INIT;
    put_file("source", "what it holds now");
    CHECK_INT(mgr_record_look_again(&job, &err), MGR_ERR_FORMAT);
    CHECK_HAS(err.msg, source_path);
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(unlink(source_path), 0);
    CHECK_INT(mgr_record_look_again(&job, &err), MGR_ERR_NOT_FOUND);
}

/* ---- staging ---- */

static int check(mgr_stage *s, const char *target)
{
    const mgr_stage_plan plan = {&job.target.cat, 105};
    err = (mgr_err)MGR_ERR_INIT;
    return mgr_stage_check(s, in_folder(target), job.id, &plan, &err);
}

static int make(mgr_stage *s)
{
    err = (mgr_err)MGR_ERR_INIT;
    return mgr_stage_make(s, &job.target.cat, true, true, &err);
}

static void test_an_output_gets_its_name(void)
{
    mgr_stage s = {.hold = -1}, second = {.hold = -1};
    uint64_t size = 0;
    CHECK_INT(check(&s, "out/"), MGR_OK);
    CHECK_TEXT(s.target, in_folder("out"));
    CHECK(!mgr_path_exists(s.directory)); /* asked, not made */
    CHECK_INT(make(&s), MGR_OK);
    CHECK_INT(mgr_file_bytes(in_folder("out.partial-0123456789abcdef/sub/model"), &size, &err),
              MGR_OK);
    CHECK_INT(size, 100);
    second.resume = true;
    CHECK_INT(check(&second, "out"), MGR_ERR_EXISTS);
    CHECK_HAS(err.msg, "another run is writing");
    mgr_stage_clear(&second);
    CHECK(!mgr_path_exists(in_folder("out")));
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_stage_finish(&s, &err), MGR_OK);
    CHECK_INT(mgr_stage_publish(&s, &err), MGR_OK);
    mgr_stage_clear(&s);
    CHECK(mgr_is_plain_file(in_folder("out/sub/model")));
    CHECK(!mgr_path_exists(in_folder("out/.mgr-journal")));
    CHECK(!mgr_path_exists(in_folder("out.partial-0123456789abcdef")));
    CHECK(!mgr_path_exists(in_folder("out.partial-0123456789abcdef.journal")));
    CHECK_INT(check(&s, "out"), MGR_ERR_EXISTS); /* it is there */
    mgr_stage_clear(&s);
}

/* Of a run that was stopped; then what lies in its folder. */
static void leave(const char *target)
{
    mgr_stage s = {.hold = -1, .keep = true};
    CHECK_INT(check(&s, target), MGR_OK);
    CHECK_INT(make(&s), MGR_OK);
    mgr_stage_clear(&s);
}

static void test_a_leftover(void)
{
    mgr_stage s = {.hold = -1};
    leave("left");
    CHECK_INT(check(&s, "left"), MGR_ERR_EXISTS);
    CHECK_HAS(err.hint, "--resume");
    mgr_stage_clear(&s);
    CHECK(mgr_is_dir(in_folder("left.partial-0123456789abcdef"))); /* not ours to remove */
    s.resume = true;
    CHECK_INT(check(&s, "left"), MGR_OK);
    CHECK(s.leftover);
    CHECK_INT(truncate(in_folder("left.partial-0123456789abcdef/other"), 3), 0);
    CHECK_INT(unlink(in_folder("left.partial-0123456789abcdef/sub/model")), 0);
    CHECK_INT(symlink("../../keep", in_folder("left.partial-0123456789abcdef/sub/model")), 0);
    put_file("keep", "keep");
    put_file("left.partial-0123456789abcdef/other.draft", "half a file");
    CHECK_INT(make(&s), MGR_OK);
    CHECK(mgr_is_plain_file(in_folder("left.partial-0123456789abcdef/sub/model")));
    CHECK(has_text("keep", "keep")); /* no link is written through */
    CHECK(!mgr_path_exists(in_folder("left.partial-0123456789abcdef/other.draft")));
    uint64_t size = 0;
    CHECK_INT(mgr_file_bytes(in_folder("left.partial-0123456789abcdef/other"), &size, &err),
              MGR_OK);
    CHECK_INT(size, 5);
    s.discard = true;
    mgr_stage_clear(&s);
    CHECK(!mgr_path_exists(in_folder("left.partial-0123456789abcdef")));
}

static void test_what_no_run_can_have_left(void)
{
    static const char *const strange[] = {"notes.txt", "sub/notes.txt", ".mgr-journal/notes.txt",
                                          "other.old"};
    char path[128];
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        mgr_stage s = {.hold = -1};
        leave("odd");
        snprintf(path, sizeof path, "odd.partial-0123456789abcdef/%s", strange[i]);
        put_file(path, "mine");
        s.resume = true;
        CHECK_INT(check(&s, "odd"), MGR_OK);
        CHECK_INT(make(&s), MGR_ERR_EXISTS);
        CHECK_HAS(err.msg, strange[i]);
        mgr_stage_clear(&s);
        CHECK(has_text(path, "mine"));
        CHECK_INT(mgr_remove_tree(in_folder("odd.partial-0123456789abcdef"), &err), MGR_OK);
    }
}

static void test_force_takes_checkpoints_only(void)
{
    mgr_stage s = {.hold = -1, .replace = true};
    CHECK_INT(mgr_make_dirs(in_folder("thesis"), &err), MGR_OK);
    put_file("thesis/thesis.tex", "years");
    CHECK(check(&s, "thesis") != MGR_OK);
    mgr_stage_clear(&s);
    CHECK(has_text("thesis/thesis.tex", "years"));
}

/* ---- sealing ---- */

static void test_nothing_is_sealed_where_nothing_is_packed(void)
{
    static const mgr_container plain = {.seal = NULL};
    mgr_seal seal = {0};
    job.container = &plain;
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_seal_recall(&seal, &job, in_folder("journal"), folder_path, &err), MGR_OK);
    CHECK(!seal.whole);
    CHECK_INT(mgr_seal_files(&seal, &job, in_folder("journal"), folder_path, folder_path, &err),
              MGR_OK);
    CHECK(!job.file_crc);
    mgr_seal_clear(&seal);
}

int main(void)
{
    folder_begin();
    set_up();
    test_what_was_read_is_proven();
    test_what_is_not_needed_is_not_read();
    test_a_source_that_changed();
    test_a_source_is_looked_at_again();
    test_an_output_gets_its_name();
    test_a_leftover();
    test_what_no_run_can_have_left();
    test_force_takes_checkpoints_only();
    test_nothing_is_sealed_where_nothing_is_packed();
    mgr_catalogue_clear(&job.source.cat);
    mgr_catalogue_clear(&job.target.cat);
    mgr_comm_stop(job.comm);
    folder_end();
    return CHECK_DONE();
}
