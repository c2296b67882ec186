#include "fmt/torch_kind.h"

#include <stdbool.h>
#include <string.h>

#include "core/le.h"

static int other_format(const mgr_reader *reader, const char *what, const char *hint, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is %s", reader->name, what);
    return mgr_hint(err, "%s", hint);
}

static bool starts(const unsigned char *head, size_t len, const char *magic, size_t n)
{
    return len >= n && memcmp(head, magic, n) == 0;
}

int mgr_torch_kind_check(const mgr_reader *reader, mgr_err *err)
{
    static const char resave[] = "load it with torch and save it again with torch 1.6 or later";
    static const char directory[] = "give the path of the checkpoint in its own format";
    unsigned char head[512] = {0};
    const size_t len = reader->size < sizeof head ? (size_t)reader->size : sizeof head;
    if (len == 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is empty", reader->name);
    MGR_TRY(mgr_reader_read(reader, 0, head, len, err));
    if (starts(head, len, "PK\3\4", 4))
        return MGR_OK;
    /* the pickled number 0x1950a86a20f9469cfc6c, of any protocol */
    if (len >= 15 && head[0] == 0x80 &&
        memcmp(head + 2, "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", 13) == 0)
        return other_format(reader, "a torch.save file of before torch 1.6", resave, err);
    if (starts(head, len, "PYTORCH1", 8))
        return other_format(reader, "a torch.save file of a 2018 preview", resave, err);
    if (len >= 262 && memcmp(head + 257, "ustar", 5) == 0)
        return other_format(reader, "a tar archive, as torch.save wrote them before 2018", resave,
                            err);
    if (starts(head, len, "\x89HDF\r\n\x1a\n", 8))
        return other_format(reader, "an HDF5 file, not a torch.save file", directory, err);
    if (starts(head, len, "GGUF", 4))
        return other_format(reader, "a GGUF file, not a torch.save file", directory, err);
    if (len >= 9 && head[8] == '{' && mgr_load_u64(head) <= 100000000)
        return other_format(reader, "a safetensors file, not a torch.save file", directory, err);
    if (len >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5)
        return other_format(reader, "a bare pickle, not a torch.save file", directory, err);
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not a torch.save file: it starts with %02x%02x",
                    reader->name, head[0], head[1]);
}
