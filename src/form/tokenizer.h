/*
 * What lies beside a model for its tokenizer: which files, what they say. Rank 0 only.
 */
#ifndef MGR_FORM_TOKENIZER_H
#define MGR_FORM_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/err.h"

/* Special tokens and the number of ids that are given out; -1 and 0 where nothing says. */
typedef struct mgr_tokenizer_facts {
    int64_t bos, eos, pad;
    uint64_t length;
} mgr_tokenizer_facts;

/* Is `name` a file of a tokenizer? Of what else belongs to a model and is carried (licences,
 * templates, code that is never run)? Pure. */
bool mgr_tokenizer_is_file(const char *name);
bool mgr_tokenizer_is_companion(const char *name);

/* What the files of `directory` say: generation_config.json, config.json, tokenizer_config.json
 * with special_tokens_map.json, tokenizer.json, vocab.json, added_tokens.json. They are helpful,
 * not needed: one that makes no sense is passed over. Errors: MGR_ERR_IO, MGR_ERR_NOMEM. */
int mgr_tokenizer_look_up(const char *directory, mgr_tokenizer_facts *facts,
                          mgr_err *err) MGR_NODISCARD;

#endif
