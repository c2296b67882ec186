/*
 * Checks for C tests: they print both values and count, and survive release builds.
 * A test ends with `return CHECK_DONE();`.
 */
#ifndef MGR_TESTS_CHECK_H
#define MGR_TESTS_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int check_failures;

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #cond);               \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

#define CHECK_INT(actual, expected)                                                                \
    do {                                                                                           \
        const long long check_a_ = (long long)(actual), check_e_ = (long long)(expected);          \
        if (check_a_ != check_e_) {                                                                \
            fprintf(stderr, "%s:%d: %s is %lld, expected %lld\n", __FILE__, __LINE__, #actual,     \
                    check_a_, check_e_);                                                           \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

#define CHECK_TEXT(actual, expected)                                                               \
    do {                                                                                           \
        const char *check_a_ = (actual), *check_e_ = (expected);                                   \
        if (!check_a_ || strcmp(check_a_, check_e_) != 0) {                                        \
            fprintf(stderr, "%s:%d: %s is\n  '%s', expected\n  '%s'\n", __FILE__, __LINE__,        \
                    #actual, check_a_ ? check_a_ : "(null)", check_e_);                            \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

/* `text` contains `part`. */
#define CHECK_HAS(text, part)                                                                      \
    do {                                                                                           \
        const char *check_t_ = (text), *check_p_ = (part);                                         \
        if (!strstr(check_t_, check_p_)) {                                                         \
            fprintf(stderr, "%s:%d: '%s' does not contain '%s'\n", __FILE__, __LINE__, check_t_,   \
                    check_p_);                                                                     \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

#define CHECK_DONE() (check_failures ? (fprintf(stderr, "%d failed\n", check_failures), 1) : 0)

#endif
