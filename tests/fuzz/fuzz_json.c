/* JSON from hostile bytes: what is accepted reads back the same from both forms of the dump. */
#include "fmt/json.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_dump(const json_t *value, int indent)
{
    mgr_buf text = {0};
    mgr_err err = MGR_ERR_INIT;
    json_t *again = NULL;
    if (mgr_json_dump(value, indent, &text, &err) != MGR_OK ||
        mgr_json_parse(&again, "dump", text.data, text.len, &err) != MGR_OK ||
        !json_equal(value, again)) {
        fprintf(stderr, "%s\n%s\n", err.msg, text.data ? text.data : "");
        abort();
    }
    json_decref(again);
    mgr_buf_clear(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *value = NULL;
    mgr_err err = MGR_ERR_INIT;
    const int rc = mgr_json_parse(&value, "fuzz", (const char *)data, size, &err);
    if (rc != MGR_OK) {
        if (value || err.code != rc || err.msg[0] == '\0')
            abort();
        return 0;
    }
    check_dump(value, 0);
    check_dump(value, 1);
    json_decref(value);
    return 0;
}
