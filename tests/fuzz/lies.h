/*
 * The zoo: malformed inputs made of good ones. Each input is a seed with one to four lies told in
 * it; a lie knows what numbers, lengths, texts and signatures of our formats look like. The same
 * seed and number give the same input on every machine.
 */
#ifndef MGR_TESTS_LIES_H
#define MGR_TESTS_LIES_H

#include <stddef.h>
#include <stdint.h>

#define LIES_MOST ((size_t)1 << 16) /* bytes of an input */

/* Bytes that lies are told in. */
typedef struct lied {
    uint8_t bytes[LIES_MOST];
    size_t len;
} lied;

/* Tell the lies of input `number` in `in`, which holds a seed; `other` is another one, to take
 * pieces from. */
void lies_tell(lied *in, const lied *other, uint64_t number);

/* How many kinds there are, and their names. */
size_t lies_kinds(void);
const char *lies_name(size_t kind);

/* How often each was told. */
extern uint64_t lies_told[];

#endif
