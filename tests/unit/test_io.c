/* io/: readers, folders, trees, sweeps, publishing, signs of life, and what a place is asked before
 * a run. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/reader.h"
#include "support/folder.h"

static mgr_err err;

/* What a call returns that begins without an error. */
#define CODE(call) (err = (mgr_err)MGR_ERR_INIT, (call))

/* ---- readers ---- */

static void test_what_a_reader_gives(void)
{
    static const struct {
        uint64_t offset, len; /* of a window of 0123456789 */
        uint64_t at, n;       /* what is read of it */
        int window, read;
        const char *text;
    } rows[] = {
        {0, 10, 0, 10, MGR_OK, MGR_OK, "0123456789"},
        {3, 4, 1, 3, MGR_OK, MGR_OK, "456"},
        {3, 4, 4, 0, MGR_OK, MGR_OK, ""},
        {3, 4, 2, 3, MGR_OK, MGR_ERR_FORMAT, NULL},
        {3, 4, 5, 0, MGR_OK, MGR_ERR_FORMAT, NULL},
        {3, 4, 1, UINT64_MAX, MGR_OK, MGR_ERR_FORMAT, NULL},
        {10, 0, 0, 0, MGR_OK, MGR_OK, ""},
        {11, 0, 0, 0, MGR_ERR_FORMAT, 0, NULL},
        {3, 8, 0, 0, MGR_ERR_FORMAT, 0, NULL},
        {3, UINT64_MAX, 0, 0, MGR_ERR_FORMAT, 0, NULL},
    };
    mgr_reader file, memory, window;
    put_file("ten", "0123456789");
    CHECK_INT(mgr_reader_open(&file, in_folder("ten"), &err), MGR_OK);
    mgr_reader_memory(&memory, "memory", "0123456789", 10);
    const mgr_reader *const wholes[] = {&file, &memory};
    for (size_t i = 0; i < 2 * sizeof rows / sizeof rows[0]; i++) {
        const size_t r = i / 2;
        char got[16] = "";
        CHECK_INT(
            CODE(mgr_reader_window(&window, wholes[i % 2], rows[r].offset, rows[r].len, &err)),
            rows[r].window);
        if (rows[r].window != MGR_OK)
            continue;
        CHECK_INT(CODE(mgr_reader_read(&window, rows[r].at, got, (size_t)rows[r].n, &err)),
                  rows[r].read);
        if (rows[r].text)
            CHECK_TEXT(got, rows[r].text);
    }
    char got[4] = "";
    mgr_reader inner;
    CHECK_INT(CODE(mgr_reader_window(&window, &file, 3, 6, &err)), MGR_OK);
    CHECK_INT(CODE(mgr_reader_window(&inner, &window, 2, 3, &err)), MGR_OK);
    CHECK_INT(CODE(mgr_reader_read(&inner, 0, got, 3, &err)), MGR_OK);
    CHECK_TEXT(got, "567");
    mgr_reader_close(&file);
    mgr_reader_close(&memory);
}

static void test_what_is_no_file(void)
{
    mgr_reader reader;
    CHECK_INT(mkfifo(in_folder("fifo"), 0600), 0);
    CHECK_INT(CODE(mgr_reader_open(&reader, in_folder("absent"), &err)), MGR_ERR_NOT_FOUND);
    CHECK_INT(CODE(mgr_reader_open(&reader, folder_path, &err)), MGR_ERR_FORMAT);
    CHECK_INT(CODE(mgr_reader_open(&reader, in_folder("fifo"), &err)), MGR_ERR_FORMAT);
    CHECK_INT(unlink(in_folder("fifo")), 0);
}

/* ---- files ---- */

static void test_what_an_errno_means(void)
{
    static const struct {
        int sys, code;
    } rows[] = {{ENOSPC, MGR_ERR_SPACE}, {EDQUOT, MGR_ERR_SPACE}, {EFBIG, MGR_ERR_SPACE},
                {EIO, MGR_ERR_IO},       {EROFS, MGR_ERR_IO},     {ESTALE, MGR_ERR_IO}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK_INT(mgr_write_code(rows[i].sys), rows[i].code);
}

static void test_small_files(void)
{
    mgr_buf text = {0};
    uint64_t bytes = 0;
    CHECK_INT(CODE(mgr_write_file(in_folder("small"), "text", 4, &err)), MGR_OK);
    CHECK_INT(CODE(mgr_write_file(in_folder("small"), "other", 5, &err)), MGR_ERR_CREATE);
    CHECK(has_text("small", "text"));
    CHECK_INT(CODE(mgr_read_file(in_folder("small"), 3, &text, &err)), MGR_ERR_FORMAT);
    CHECK_INT(CODE(mgr_create_sized(in_folder("sized"), 5000, &err)), MGR_OK);
    CHECK_INT(CODE(mgr_file_bytes(in_folder("sized"), &bytes, &err)), MGR_OK);
    CHECK_INT(bytes, 5000);
    CHECK_INT(mgr_file_room(in_folder("absent")), 0);
    CHECK_INT(mgr_file_room(folder_path), 0);
    CHECK(mgr_file_room(in_folder("small")) > 0);
    mgr_buf_clear(&text);
}

/* ---- folders ---- */

static void test_folders_are_made(void)
{
    CHECK_INT(CODE(mgr_make_dir(in_folder("a"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_make_dir(in_folder("a"), &err)), MGR_ERR_EXISTS);
    CHECK_INT(CODE(mgr_make_dir(in_folder("x/y"), &err)), MGR_ERR_CREATE);
    CHECK_INT(CODE(mgr_make_dirs(in_folder("x/y/z"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_make_dirs(in_folder("x/y/z"), &err)), MGR_OK);
    CHECK(mgr_is_dir(in_folder("x/y/z")));
    put_file("x/file", "");
    CHECK_INT(CODE(mgr_make_dirs(in_folder("x/file/z"), &err)), MGR_ERR_CREATE);
    CHECK_INT(CODE(mgr_sync_dir(in_folder("x"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_sync_dir(in_folder("absent"), &err)), MGR_ERR_IO);
}

static void test_parts_of_paths(void)
{
    static const char *const rows[][2] = {{"a/b", "a"},  {"a", "."},      {"/a", "/"},
                                          {"/", "/"},    {"a/", "."},     {"", "."},
                                          {"a//b", "a"}, {"/a/b//", "/a"}};
    mgr_arena arena = {0};
    const char *part;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_INT(CODE(mgr_dirname(rows[i][0], &arena, &part, &err)), MGR_OK);
        CHECK_TEXT(part, rows[i][1]);
    }
    mgr_arena_clear(&arena);
}

static void test_who_is_inside(void)
{
    CHECK_INT(CODE(mgr_make_dirs(in_folder("in/side"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_make_dirs(in_folder("inn"), &err)), MGR_OK);
    CHECK_INT(symlink("in/side", in_folder("link")), 0);
    CHECK(mgr_is_inside(in_folder("in/side"), in_folder("in")));
    CHECK(mgr_is_inside(in_folder("in"), in_folder("in")));
    CHECK(mgr_is_inside(in_folder("link"), in_folder("in")));
    CHECK(mgr_is_inside(in_folder("in"), "/"));
    CHECK(!mgr_is_inside(in_folder("inn"), in_folder("in")));
    CHECK(!mgr_is_inside(in_folder("in"), in_folder("in/side")));
    CHECK(!mgr_is_inside(in_folder("absent"), in_folder("in")));
}

/* ---- trees ---- */

static void make_tree(void)
{
    CHECK_INT(CODE(mgr_make_dirs(in_folder("tree/b/empty"), &err)), MGR_OK);
    put_file("tree/b/two", "2");
    put_file("tree/a", "1");
    put_file("kept", "kept");
    CHECK_INT(symlink("../kept", in_folder("tree/link")), 0);
    CHECK_INT(symlink("..", in_folder("tree/up")), 0);
}

static void test_a_tree_is_listed(void)
{
    static const char *const right[] = {"a", "b/empty/", "b/two", "link", "up"};
    mgr_arena arena = {0};
    const char **names = NULL;
    size_t n = 77;
    make_tree();
    CHECK_INT(CODE(mgr_list_tree(in_folder("tree"), &arena, &names, &n, &err)), MGR_OK);
    CHECK_INT(n, 5);
    for (size_t i = 0; i < 5 && n == 5; i++)
        CHECK_TEXT(names[i], right[i]);
    CHECK_INT(CODE(mgr_list_dir(in_folder("tree"), &arena, &names, &n, &err)), MGR_OK);
    CHECK_INT(n, 4);
    mgr_arena_clear(&arena);
}

/* Whoever is told that there are names may look at them. */
static void test_a_list_that_fails_is_empty(void)
{
    char deep[256] = "deep";
    mgr_arena arena = {0};
    const char **names = NULL;
    size_t n = 0;
    for (int i = 0; i < 20; i++)
        strcat(deep, "/d");
    CHECK_INT(CODE(mgr_make_dirs(in_folder(deep), &err)), MGR_OK);
    put_file("deep/file", "");
    CHECK_INT(CODE(mgr_list_tree(in_folder("deep"), &arena, &names, &n, &err)), MGR_ERR_EXISTS);
    CHECK_INT(n, 0);
    CHECK_INT(CODE(mgr_remove_tree(in_folder("deep/d/d/d/d/d/d/d/d"), &err)), MGR_OK);
    mgr_arena_clear(&arena);
}

static void test_a_tree_is_removed(void)
{
    CHECK_INT(CODE(mgr_remove_tree(in_folder("tree"), &err)), MGR_OK);
    CHECK(!mgr_path_exists(in_folder("tree")));
    CHECK(has_text("kept", "kept"));
    CHECK_INT(CODE(mgr_remove_tree(in_folder("tree"), &err)), MGR_OK); /* there is nothing */
}

/* ---- sweeping ---- */

static mgr_verdict judge(const void *context, const char *path, mgr_entry kind)
{
    (void)context;
    if (kind == MGR_ENTRY_FOLDER)
        return strcmp(path, "gone") == 0 ? MGR_DROP : MGR_ENTER;
    if (strcmp(path, "in/strange") == 0)
        return MGR_REFUSE;
    return kind == MGR_ENTRY_FILE ? MGR_KEEP : MGR_DROP;
}

static void test_a_sweep(void)
{
    CHECK_INT(CODE(mgr_make_dirs(in_folder("s/in"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_make_dirs(in_folder("s/gone"), &err)), MGR_OK);
    put_file("s/in/file", "file");
    put_file("elsewhere", "elsewhere");
    CHECK_INT(symlink("../../elsewhere", in_folder("s/in/link")), 0);
    CHECK_INT(link(in_folder("elsewhere"), in_folder("s/in/second")), 0);
    CHECK_INT(CODE(mgr_sweep(in_folder("s"), judge, NULL, &err)), MGR_OK);
    CHECK(!mgr_path_exists(in_folder("s/gone")));
    CHECK(!mgr_path_exists(in_folder("s/in/link")));   /* what it points to stays */
    CHECK(!mgr_path_exists(in_folder("s/in/second"))); /* a name that others write by */
    CHECK(has_text("s/in/file", "file"));
    CHECK(has_text("elsewhere", "elsewhere"));
    put_file("s/in/strange", "");
    CHECK_INT(CODE(mgr_sweep(in_folder("s"), judge, NULL, &err)), MGR_ERR_EXISTS);
    CHECK_HAS(err.msg, "in/strange' is a file that no run put there");
}

/* ---- publishing ---- */

static void test_publishing(void)
{
    CHECK_INT(CODE(mgr_make_dirs(in_folder("new"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_make_dirs(in_folder("old"), &err)), MGR_OK);
    put_file("new/which", "new");
    CHECK_INT(CODE(mgr_publish(in_folder("new"), in_folder("old"), false, &err)), MGR_ERR_EXISTS);
    put_file("old/which", "old");
    CHECK_INT(CODE(mgr_publish(in_folder("new"), in_folder("old"), true, &err)), MGR_OK);
    CHECK(has_text("old/which", "new"));
    CHECK(!mgr_path_exists(in_folder("new")));
    CHECK_INT(CODE(mgr_publish(in_folder("old"), in_folder("fresh"), true, &err)), MGR_OK);
    CHECK(has_text("fresh/which", "new"));
}

static void test_who_holds_a_folder(void)
{
    int first = -1, second = -1;
    bool taken = true;
    CHECK_INT(CODE(mgr_hold_dir(in_folder("fresh"), &first, &taken, &err)), MGR_OK);
    CHECK(!taken && mgr_is_held(in_folder("fresh"), first));
    CHECK_INT(CODE(mgr_hold_dir(in_folder("fresh"), &second, &taken, &err)), MGR_OK);
    CHECK(taken);
    CHECK_INT(CODE(mgr_rename(in_folder("fresh"), in_folder("moved"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_make_dir(in_folder("fresh"), &err)), MGR_OK);
    CHECK(!mgr_is_held(in_folder("fresh"), first)); /* another one of that name */
    mgr_close(first);
}

/* ---- signs of life ---- */

#define SIGN 128

/* What another host's run keeps doing to its sign. */
typedef struct other_host {
    const char *path;
    bool ends; /* it takes it away instead */
} other_host;

static void put_sign(const char *path, const char *host, unsigned count)
{
    char sign[SIGN] = "";
    const int fd = open(path, O_WRONLY | O_CREAT, 0600);
    snprintf(sign, sizeof sign, "%s 1 %u", host, count);
    CHECK(pwrite(fd, sign, sizeof sign, 0) == SIGN);
    close(fd);
}

static void *act(void *context)
{
    const other_host *const o = context;
    const struct timespec pause = {0, 400000000};
    nanosleep(&pause, NULL);
    if (o->ends)
        unlink(o->path);
    else
        put_sign(o->path, "elsewhere", 2);
    return NULL;
}

/* Is there life while the other host acts? */
static bool seen_beside(const char *path, bool ends, char *host, size_t size)
{
    pthread_t thread;
    other_host other = {path, ends};
    put_sign(path, "elsewhere", 1);
    CHECK(pthread_create(&thread, NULL, act, &other) == 0);
    const bool seen = mgr_beat_is_there(path, host, size);
    pthread_join(thread, NULL);
    return seen;
}

static void test_a_sign_of_life(void)
{
    char host[65] = "", path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s", in_folder("alive"));
    CHECK(!mgr_beat_is_there(path, host, sizeof host)); /* none */
    CHECK(seen_beside(path, false, host, sizeof host));
    CHECK_TEXT(host, "elsewhere");
    CHECK(!seen_beside(path, true, host, sizeof host));
    put_file("alive", "short");
    CHECK(!mgr_beat_is_there(path, host, sizeof host));
    mgr_beat *beat = mgr_beat_start(path); /* in the place of what was left */
    CHECK(beat && stat(path, &st) == 0 && st.st_size == SIGN);
    CHECK(!mgr_beat_is_there(path, host, sizeof host)); /* of this host: there the lock tells */
    mgr_beat_stop(&beat);
    mgr_beat_stop(&beat);
    CHECK(!beat && !mgr_path_exists(path));
    CHECK(!mgr_beat_start(in_folder("absent/alive")));
    CHECK(symlink(in_folder("p"), path) == 0);
    CHECK(!mgr_beat_is_there(path, host, sizeof host)); /* links are not followed */
    unlink(path);
}

/* ---- room ---- */

static void test_a_quota_is_asked(void)
{
    mgr_quota quota;
    const int fd = open(folder_path, O_RDONLY | O_DIRECTORY);
    mgr_quota_ask(fd, &quota);
    CHECK(!quota.whose || (quota.asked && quota.left <= quota.limit && quota.limit > 0));
    close(fd);
    mgr_quota_ask(-1, &quota);
    CHECK(!quota.asked && !quota.whose);
}

static void test_a_place_is_asked(void)
{
    uint64_t space = 0;
    mgr_room room;
    char name[400] = "p/";
    CHECK_INT(CODE(mgr_make_dir(in_folder("p"), &err)), MGR_OK);
    CHECK_INT(CODE(mgr_try_folder(in_folder("p/probe"), 1 << 20, 4096, &room, &err)), MGR_OK);
    CHECK(!mgr_path_exists(in_folder("p/probe")));
    memset(name + 2, 'n', 300);
    CHECK(mgr_name_max(folder_path) < 300);
    CHECK_INT(CODE(mgr_try_folder(in_folder(name), 1, 1, &room, &err)), MGR_ERR_CREATE);
    CHECK_INT(CODE(mgr_try_folder(in_folder("absent/p"), 1, 1, &room, &err)), MGR_ERR_CREATE);
    CHECK_INT(CODE(mgr_free_space(folder_path, &space, &err)), MGR_OK);
    CHECK(space > 0);
    CHECK(mgr_peak_rss() > 0 && mgr_current_rss() > 0);
}

int main(void)
{
    folder_begin();
    test_what_a_reader_gives();
    test_what_is_no_file();
    test_what_an_errno_means();
    test_small_files();
    test_folders_are_made();
    test_parts_of_paths();
    test_who_is_inside();
    test_a_tree_is_listed();
    test_a_list_that_fails_is_empty();
    test_a_tree_is_removed();
    test_a_sweep();
    test_publishing();
    test_who_holds_a_folder();
    test_a_sign_of_life();
    test_a_place_is_asked();
    test_a_quota_is_asked();
    folder_end();
    return CHECK_DONE();
}
