/*
 * A folder of its own for a C test, and small files in it. folder_end removes it.
 */
#ifndef MGR_TESTS_FOLDER_H
#define MGR_TESTS_FOLDER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "support/check.h"

static char folder_path[32];

static void folder_begin(void)
{
    const int used = snprintf(folder_path, sizeof folder_path, "/tmp/mgr-test-");
    memset(folder_path + used, 'X', 6); /* what mkdtemp replaces */
    CHECK(mkdtemp(folder_path) != NULL);
}

static void folder_end(void)
{
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_remove_tree(folder_path, &err), MGR_OK);
}

/* The path of `name` in it, until the eighth call from here. */
static const char *in_folder(const char *name)
{
    static char paths[8][512];
    static unsigned next;
    char *const path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder_path, name);
    return path;
}

static void put_file(const char *name, const char *text)
{
    FILE *const f = fopen(in_folder(name), "wb");
    CHECK(f && fwrite(text, 1, strlen(text), f) == strlen(text) && fclose(f) == 0);
}

/* Is `text` what the file `name` holds? */
static inline bool has_text(const char *name, const char *text)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_buf is = {0};
    const bool same = mgr_read_file(in_folder(name), 4096, &is, &err) == MGR_OK &&
                      is.len == strlen(text) && (is.len == 0 || memcmp(is.data, text, is.len) == 0);
    mgr_buf_clear(&is);
    return same;
}

#endif
