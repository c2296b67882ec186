/*
 * The one place that prints what may come from a file: names, paths, values, messages that quote
 * them.
 */
#ifndef MGR_CORE_SAY_H
#define MGR_CORE_SAY_H

#include <stdio.h>

#include "mgr/err.h"

/* As fprintf. But for the newlines of `fmt`, whatever could steer a terminal or turn the reading
 * direction is printed as its number: control characters, C1 among them, and the formatting
 * characters of Unicode as \u and four digits, which JSON understands, bytes that are no UTF-8 as
 * \x and two. Returns the characters of the text. Local. */
int mgr_say(FILE *to, const char *fmt, ...) MGR_PRINTF(2, 3);

/* Columns of the terminal that `fd` is, within reason; 80 where it is none. */
int mgr_say_columns(int fd);

/* "label: message" to stderr; on a terminal broken between words, in a log left as one line, for
 * grep. Local. */
void mgr_say_fitting(const char *label, const char *message);

/* Several lines that we made: JSON, a configuration, a list. Newlines pass; all else as above. */
void mgr_say_lines(FILE *to, const char *text);

#endif
