/* Any bytes as a zip archive: opened, and its small members read. */
#include <stdlib.h>

#include "core/mem.h"
#include "fmt/zip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_reader reader;
    mgr_zip zip;
    mgr_reader_memory(&reader, "fuzz.zip", data, size);
    if (mgr_zip_open(&zip, &reader, &err) != MGR_OK)
        return 0;
    for (size_t i = 0; i < zip.n_members; i++) {
        unsigned char *bytes;
        mgr_err member_err = MGR_ERR_INIT;
        /* what was accepted lies inside the file */
        const mgr_zip_member *const m = &zip.members[i];
        if (m->offset > size || m->size > size - m->offset)
            abort();
        if (mgr_zip_read(&zip, &reader, m, 1 << 20, &bytes, &member_err) == MGR_OK)
            mgr_free(bytes);
    }
    mgr_zip_clear(&zip);
    return 0;
}
