#include "fmt/h5_driver.h"

#include <string.h>

#include "core/mem.h"
#include "io/file.h"

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

/* What the library holds of an open file. */
typedef struct handle {
    H5FD_t base; /* the library's own part, in front */
    mgr_h5_channel *channel;
} handle;

static mgr_h5_channel *channel_of(const H5FD_t *base)
{
    return ((const handle *)(const void *)base)->channel;
}

static H5FD_t *do_open(const char *name, unsigned flags, hid_t access, haddr_t most)
{
    mgr_h5_channel *const *const info = H5Pget_driver_info(access);
    handle *h;
    (void)name, (void)flags, (void)most;
    if (!info)
        return NULL;
    mgr_h5_channel *const c = *info;
    c->rc = mgr_alloc(&h, 1, sizeof *h, &c->trouble);
    if (c->rc != MGR_OK)
        return NULL;
    h->channel = c;
    return &h->base;
}

static herr_t do_close(H5FD_t *base)
{
    mgr_free(base);
    return 0;
}

/* As for files of the library's default driver, so that the bytes are those that it would make. */
static herr_t do_query(const H5FD_t *base, unsigned long *flags)
{
    (void)base;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
    return 0;
}

static haddr_t do_get_eoa(const H5FD_t *base, H5FD_mem_t type)
{
    (void)type;
    return channel_of(base)->allocated;
}

static herr_t do_set_eoa(H5FD_t *base, H5FD_mem_t type, haddr_t at)
{
    (void)type;
    channel_of(base)->allocated = at;
    return 0;
}

static haddr_t do_get_eof(const H5FD_t *base, H5FD_mem_t type)
{
    (void)type;
    return channel_of(base)->size;
}

/* What lies behind the end of the file was never written: zeros. After trouble there is nothing to
 * rely on, and reading is the one call that may fail. */
static herr_t do_read(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t len,
                      void *out)
{
    mgr_h5_channel *const c = channel_of(base);
    (void)type, (void)transfer;
    const uint64_t left = at < c->size ? c->size - at : 0;
    const size_t there = left < len ? (size_t)left : len;
    if (c->rc == MGR_OK)
        c->rc = mgr_pread_full(c->fd, c->path, out, there, at, &c->trouble);
    memset((char *)out + there, 0, len - there);
    return c->rc == MGR_OK ? 0 : -1;
}

static herr_t do_write(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t len,
                       const void *bytes)
{
    mgr_h5_channel *const c = channel_of(base);
    (void)transfer;
    if (c->placing && type == H5FD_MEM_DRAW) {
        c->place = at;
        c->place_bytes += len;
    } else if (c->rc == MGR_OK) {
        c->rc = mgr_pwrite_full(c->fd, c->path, bytes, len, at, &c->trouble);
    }
    c->size = at + len > c->size ? at + len : c->size;
    return 0;
}

static herr_t do_truncate(H5FD_t *base, hid_t transfer, hbool_t closing)
{
    mgr_h5_channel *const c = channel_of(base);
    (void)transfer, (void)closing;
    if (c->size != c->allocated && c->rc == MGR_OK)
        c->rc = mgr_set_size(c->fd, c->path, c->allocated, &c->trouble);
    c->size = c->allocated;
    return 0;
}

static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)600, /* of the numbers that are free for anyone's tests */
#endif
    .name = "mgr",
    .maxaddr = ((haddr_t)1 << 63) - 1,
    .fc_degree = H5F_CLOSE_WEAK,
    .fapl_size = sizeof(mgr_h5_channel *),
    .open = do_open,
    .close = do_close,
    .query = do_query,
    .get_eoa = do_get_eoa,
    .set_eoa = do_set_eoa,
    .get_eof = do_get_eof,
    .read = do_read,
    .write = do_write,
    .truncate = do_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

herr_t mgr_h5_set_channel(hid_t access, mgr_h5_channel *channel)
{
    const hid_t id = H5FDregister(&driver);
    if (id < 0)
        return -1;
    const herr_t set = H5Pset_driver(access, id, &channel);
    return H5FDunregister(id) < 0 ? -1 : set; /* the list, then the file, holds it */
}
