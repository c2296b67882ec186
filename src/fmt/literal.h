/*
 * Lists, tuples and dicts of plain values as text that Python would read back, and from that text
 * to a pickle: how a list in Megatron's args travels from a source to a target. What is spelt is
 * ours alone, so this reads no foreign text.
 *
 *   value := None | True | False | int | float | 'text' | torch.name
 *          | [value, ...] | (value, ...) | (value,) | {value: value, ...}
 */
#ifndef MGR_FMT_LITERAL_H
#define MGR_FMT_LITERAL_H

#include "core/str.h"
#include "fmt/pickle.h"
#include "mgr/err.h"

/* Append the text of a list, tuple or dict. Nothing is appended for other nodes, for one that holds
 * something that cannot be spelt, and for one that is too deep or too long. Local. */
int mgr_literal_spell(const mgr_node *node, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* Append the opcodes of such a text. Errors: MGR_ERR_INTERNAL for any other text. Local. */
int mgr_literal_pickle(const char *text, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* A float as Python spells it: with a point or an exponent, and so that it reads back the same. */
const char *mgr_literal_real(double value, char *out, size_t size);

#endif
