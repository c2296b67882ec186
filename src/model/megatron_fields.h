/*
 * What each field of Megatron's args means to us: an allow-list. Data, with the source of each row.
 */
#ifndef MGR_MODEL_MEGATRON_FIELDS_H
#define MGR_MODEL_MEGATRON_FIELDS_H

#include <stdbool.h>
#include <stddef.h>

#include "core/str.h"
#include "mgr/catalogue.h"

typedef enum mgr_field_rule {
    MGR_FIELD_UNKNOWN, /* in no row */
    MGR_FIELD_READ,    /* the model is made of it, or the tensors show it */
    MGR_FIELD_SPLIT,   /* of the save's layout or of its run, not of the model: made anew or dropped
                        */
    MGR_FIELD_INERT,   /* training, logging, paths, precision: nothing that is computed */
    MGR_FIELD_NEUTRAL, /* refused at any other value than its neutral ones */
    MGR_FIELD_KEPT     /* the same, but other values may go from Megatron to Megatron unchanged */
} mgr_field_rule;

typedef struct mgr_field {
    const char *name;
    mgr_field_rule rule;
    const char *neutral; /* NEUTRAL, KEPT: "a|b"; None always is; "zeros" is a list of them, too */
    const char *what;    /* for messages: what another value makes of the model */
    const char *source;  /* where in Megatron-LM: file and function, or how it was found out */
} mgr_field;

/* The row of an arg's name, or one with the rule UNKNOWN. Pure. */
mgr_field mgr_megatron_field(const char *name);

/* The names of all rows, one after the other; NULL behind the last. `out` holds `size` bytes. */
const char *mgr_megatron_field_at(size_t idx, char *out, size_t size);

/* Does `value` leave the model as it would be without this field? Pure. */
bool mgr_megatron_is_neutral(const mgr_field *field, const mgr_attr *value);

/* null, false, 0 or empty: what a field that nobody knows must be to be passed over. Pure. */
bool mgr_attr_is_nothing(const mgr_attr *value);

/* The value as Python spells it, cut at `size`; returns out. */
const char *mgr_attr_text(const mgr_attr *value, char *out, size_t size);

#endif
