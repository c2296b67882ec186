#include "fmt/safetensors_pieces.h"

#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "fmt/json_scan.h"

#define LENGTH_BYTES 8
#define MAX_INFO ((size_t)64 << 20)

/* To the value of member `name` of the object at hand, past all others; false if it has none of
 * that kind. */
static int seek(mgr_json_scan *s, const char *name, mgr_json_kind kind, bool *found)
{
    mgr_json_kind is;
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (bool more;;) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        const bool named = more && strcmp(s->text.data, name) == 0;
        if (more)
            MGR_TRY(mgr_json_scan_kind(s, &is));
        *found = named && is == kind;
        if (!more || *found)
            return MGR_OK;
        MGR_TRY(mgr_json_scan_skip(s));
    }
}

/* The text of __metadata__'s member, if it is there, into `out`. */
static int scan(mgr_json_scan *s, mgr_buf *out, mgr_err *err)
{
    bool found;
    MGR_TRY(seek(s, "__metadata__", MGR_JSON_OBJECT, &found));
    if (found)
        MGR_TRY(seek(s, "DCP_SHARDING_INFO", MGR_JSON_STRING, &found));
    if (!found)
        return MGR_OK;
    MGR_TRY(mgr_json_scan_string(s));
    if (s->cut)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "DCP_SHARDING_INFO of '%s' is too long",
                        s->reader->name);
    return mgr_buf_add(out, s->text.data, s->text.len, err);
}

/* The header's end was checked when its tensors were read; this looks no further than the file. */
static int scan_header(const mgr_reader *reader, mgr_buf *out, mgr_err *err)
{
    unsigned char length[LENGTH_BYTES];
    uint64_t n = 0;
    mgr_json_scan *s;
    MGR_TRY(mgr_reader_read(reader, 0, length, sizeof length, err));
    for (int i = LENGTH_BYTES; i-- > 0;)
        n = n << 8 | length[i];
    if (n > reader->size - LENGTH_BYTES)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': the header passes the end of the file",
                        reader->name);
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    mgr_json_scan_start(s, reader, LENGTH_BYTES, LENGTH_BYTES + n, err);
    s->keep = MAX_INFO;
    const int rc = scan(s, out, err);
    mgr_json_scan_stop(s);
    mgr_free(s);
    return rc;
}

int mgr_safetensors_sharding(const mgr_reader *reader, json_t **info, mgr_err *err)
{
    mgr_buf text = {0};
    *info = NULL;
    int rc = scan_header(reader, &text, err);
    if (rc == MGR_OK && text.len)
        rc = mgr_json_parse(info, reader->name, text.data, text.len, err);
    if (rc == MGR_OK && !json_is_object(*info))
        rc =
            mgr_fail(err, MGR_ERR_FORMAT,
                     "'%s' does not say where its tensors lie: no DCP_SHARDING_INFO", reader->name);
    mgr_buf_clear(&text);
    return rc;
}
