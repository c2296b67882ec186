/*
 * Reading the files of tests/data/golden: lines of blank-separated tokens, '#' starts a comment
 * line.
 */
#ifndef MGR_TESTS_GOLDEN_H
#define MGR_TESTS_GOLDEN_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN_LINE 32768

typedef struct golden_file {
    FILE *file;
    char line[GOLDEN_LINE];
    char *rest; /* what is left of the line */
} golden_file;

/* Nonzero: opened. */
static inline int golden_open(golden_file *g, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/golden/%s", MGR_TEST_DATA, name);
    g->file = fopen(path, "r");
    g->rest = NULL;
    if (!g->file)
        fprintf(stderr, "cannot open '%s'\n", path);
    return g->file != NULL;
}

/* The next line that is not a comment; 0 at the end, when the file is closed. */
static inline int golden_line(golden_file *g)
{
    while (fgets(g->line, sizeof g->line, g->file)) {
        if (g->line[0] != '#' && g->line[0] != '\n') {
            g->rest = g->line;
            return 1;
        }
    }
    fclose(g->file);
    return 0;
}

/* The next token of the line, or NULL. */
static inline const char *golden_token(golden_file *g)
{
    char *token = g->rest + strspn(g->rest, " \n");
    if (*token == '\0')
        return NULL;
    g->rest = token + strcspn(token, " \n");
    if (*g->rest)
        *g->rest++ = '\0';
    return token;
}

/* A number in `base`; 0 where there is none. */
static inline uint64_t golden_number(golden_file *g, int base)
{
    const char *token = golden_token(g);
    return token ? strtoull(token, NULL, base) : 0;
}

static inline int64_t golden_signed(golden_file *g)
{
    const char *token = golden_token(g);
    return token ? strtoll(token, NULL, 10) : 0;
}

static inline double golden_real(golden_file *g)
{
    const char *token = golden_token(g);
    return token ? strtod(token, NULL) : 0;
}

/* Skip the colon before the values; nonzero if it is there. */
static inline int golden_colon(golden_file *g)
{
    const char *token = golden_token(g);
    return token && strcmp(token, ":") == 0;
}

/* All remaining numbers of the line into out[max]; how many. */
static inline size_t golden_rest(golden_file *g, int base, uint64_t *out, size_t max)
{
    size_t n = 0;
    const char *token;
    while (n < max && (token = golden_token(g)) != NULL)
        out[n++] = strtoull(token, NULL, base);
    return n;
}

#endif
