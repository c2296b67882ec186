/* The keys of the configuration, for people: --help, the manual, completion. */
#ifndef MGR_CLI_KEYS_PAGE_H
#define MGR_CLI_KEYS_PAGE_H

#include <stddef.h>

#include "mgr/err.h"

/* Sections with their keys below, as --help has them. */
void mgr_cli_print_keys(void);

/* The full name of the key `idx`; NULL behind the last. */
const char *mgr_cli_key_at(size_t idx);

/* Every key with all that the tables say, as "markdown", or as a page of section 5 for "scd"
 * (scdoc). To stdout. Errors: MGR_ERR_USAGE. */
int mgr_cli_document_keys(const char *form, mgr_err *err) MGR_NODISCARD;

#endif
