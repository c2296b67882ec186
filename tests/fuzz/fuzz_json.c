/* JSON from hostile bytes: what is accepted reads back the same from both forms of the dump. */
#include "fmt/json.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef int (*parser)(json_t **out, const char *name, const char *text, size_t len, mgr_err *err);

static void check_dump(const json_t *value, int indent, parser parse)
{
    mgr_buf text = {0};
    mgr_err err = MGR_ERR_INIT;
    json_t *again = NULL;
    if (mgr_json_dump(value, indent, &text, &err) != MGR_OK ||
        parse(&again, "dump", text.data, text.len, &err) != MGR_OK || !json_equal(value, again)) {
        fprintf(stderr, "%s\n%s\n", err.msg, text.data ? text.data : "");
        abort();
    }
    json_decref(again);
    mgr_buf_clear(&text);
}

static void check(const uint8_t *data, size_t size, parser parse)
{
    json_t *value = NULL;
    mgr_err err = MGR_ERR_INIT;
    const int rc = parse(&value, "fuzz", (const char *)data, size, &err);
    if (rc != MGR_OK) {
        if (value || err.code != rc || err.msg[0] == '\0')
            abort();
        return;
    }
    check_dump(value, 0, parse);
    check_dump(value, 1, parse);
    json_decref(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check(data, size, mgr_json_parse);
    check(data, size, mgr_json_parse_python);
    return 0;
}
