#include "fmt/h5.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/h5_driver.h"
#include "fmt/h5_read.h"
#include "io/file.h"

/* Large data sets begin at multiples of this, so that writes are aligned. */
#define ALIGN 4096
#define ALIGN_FROM 65536
#define META_BLOCK ((hsize_t)1 << 20)
#define NAME_MAX_BYTES 256

struct mgr_h5 {
    hid_t file;
    char *path;
    bool writable;
    mgr_h5_channel channel;
    mgr_reader in; /* of a file that is made, which the library does not have open */
    /* the data set at hand; of a file that is being made it is open, else -1 */
    hid_t set;
    char set_name[NAME_MAX_BYTES];
    uint64_t rows, row_bytes, offset; /* the offset is of one in one piece, else UINT64_MAX */
};

/* ---- errors ---- */

/* Called from the outermost call inwards: the last text stays. */
static herr_t keep_innermost(unsigned n, const H5E_error2_t *e, void *data)
{
    char *const text = data;
    (void)n;
    if (e->desc && e->desc[0])
        snprintf(text, 160, "%s", e->desc);
    return 0;
}

/* Has a call on the file failed? The first failure is the cause of all that follows. */
static int check(const mgr_h5 *h, mgr_err *err)
{
    if (h->channel.rc != MGR_OK && err->code == MGR_OK)
        *err = h->channel.trouble;
    return h->channel.rc;
}

/* Fail with what the file system, or else the library, says is the cause. */
static int fail(mgr_err *err, mgr_code code, const mgr_h5 *h, const char *what, const char *name)
{
    char cause[160] = "no cause given";
    MGR_TRY(check(h, err));
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_innermost, cause);
    H5Eclear2(H5E_DEFAULT);
    return mgr_fail(err, code, "%s '%s'%s%s%s: HDF5: %s", what, h->path, name ? " data set '" : "",
                    name ? name : "", name ? "'" : "", cause);
}

/* ---- types ---- */

/* In this order: HDF5 checks each step against the size that holds by then. */
static hid_t small_float(size_t exponent_bits, size_t mantissa_bits, size_t bias)
{
    const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type >= 0 && (H5Tset_fields(type, 15, mantissa_bits, exponent_bits, 0, mantissa_bits) < 0 ||
                      H5Tset_precision(type, 16) < 0 || H5Tset_ebias(type, bias) < 0 ||
                      H5Tset_size(type, 2) < 0)) {
        H5Tclose(type);
        return -1;
    }
    return type;
}

/* The caller closes it. */
static hid_t type_of(mgr_dtype dtype)
{
    switch (dtype) {
    case MGR_DTYPE_BF16:
        return small_float(8, 7, 127);
    case MGR_DTYPE_F16:
        return small_float(5, 10, 15);
    case MGR_DTYPE_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case MGR_DTYPE_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    case MGR_DTYPE_U8:
    case MGR_DTYPE_BOOL:
        return H5Tcopy(H5T_STD_U8LE);
    case MGR_DTYPE_I8:
        return H5Tcopy(H5T_STD_I8LE);
    case MGR_DTYPE_I16:
        return H5Tcopy(H5T_STD_I16LE);
    case MGR_DTYPE_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case MGR_DTYPE_I64:
        return H5Tcopy(H5T_STD_I64LE);
    default:
        return -1;
    }
}

/* ---- files ---- */

static int make(mgr_h5 **out, const char *path, bool writable, mgr_err *err)
{
    mgr_h5 *h;
    H5dont_atexit();                       /* what could not be closed is not tried again at exit */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* errors are ours to report */
    MGR_TRY(mgr_alloc(&h, 1, sizeof *h, err));
    h->file = h->set = -1;
    h->writable = writable;
    h->channel.fd = h->in.fd = -1;
    const int rc = mgr_strdup(&h->path, path, err);
    h->channel.path = h->path;
    h->channel.trouble = (mgr_err)MGR_ERR_INIT;
    if (rc != MGR_OK)
        mgr_free(h);
    else
        *out = h;
    return rc;
}

/* Forget it, whatever the library still holds of it. */
static void discard(mgr_h5 *h)
{
    if (h->channel.fd >= 0)
        mgr_close(h->channel.fd);
    mgr_reader_close(&h->in);
    mgr_free(h->path);
    mgr_free(h);
}

/* Version 1.8's format: newer ones mark a file that is open for writing, and then a killed run's
 * cannot be opened to continue it. */
static hid_t access_list(mgr_h5_channel *channel)
{
    const hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    if (list >= 0 &&
        (H5Pset_libver_bounds(list, H5F_LIBVER_V18, H5F_LIBVER_V18) < 0 ||
         H5Pset_alignment(list, ALIGN_FROM, ALIGN) < 0 ||
         H5Pset_meta_block_size(list, META_BLOCK) < 0 || mgr_h5_set_channel(list, channel) < 0)) {
        H5Pclose(list);
        return -1;
    }
    return list;
}

static void create_file(mgr_h5 *h)
{
    const hid_t access = access_list(&h->channel), creation = H5Pcreate(H5P_FILE_CREATE);
    if (access >= 0 && creation >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
        h->file = H5Fcreate(h->path, H5F_ACC_EXCL, creation, access);
    H5Pclose(creation);
    H5Pclose(access);
}

int mgr_h5_create(mgr_h5 **out, const char *path, mgr_err *err)
{
    mgr_h5 *h;
    MGR_TRY(make(&h, path, true, err));
    int rc = mgr_create_open(path, &h->channel.fd, err);
    if (rc == MGR_OK) {
        create_file(h);
        rc = h->file < 0 ? fail(err, MGR_ERR_CREATE, h, "cannot create", NULL) : MGR_OK;
    }
    if (rc != MGR_OK)
        discard(h);
    else
        *out = h;
    return rc;
}

static int open_file(mgr_h5 *h, mgr_err *err)
{
    if (h->writable)
        MGR_TRY(mgr_open_both(h->path, &h->channel.fd, err));
    return mgr_reader_open(&h->in, h->path, err);
}

static int open_as(mgr_h5 **out, const char *path, bool writable, mgr_err *err)
{
    mgr_h5 *h;
    MGR_TRY(make(&h, path, writable, err));
    const int rc = open_file(h, err);
    if (rc != MGR_OK)
        discard(h);
    else
        *out = h;
    return rc;
}

int mgr_h5_open(mgr_h5 **out, const char *path, mgr_err *err)
{
    return open_as(out, path, false, err);
}

int mgr_h5_open_rows(mgr_h5 **out, const char *path, mgr_err *err)
{
    return open_as(out, path, true, err);
}

static void drop_set(mgr_h5 *h)
{
    if (h->set >= 0)
        H5Dclose(h->set);
    h->set = -1;
    h->set_name[0] = '\0';
}

int mgr_h5_close(mgr_h5 *h, mgr_err *err)
{
    if (!h)
        return MGR_OK;
    drop_set(h);
    int rc = MGR_OK;
    if (h->file >= 0 && H5Fclose(h->file) < 0)
        rc = fail(err, MGR_ERR_IO, h, "cannot close", NULL);
    if (rc == MGR_OK)
        rc = check(h, err);
    if (rc == MGR_OK && h->writable) {
        rc = mgr_sync_close(h->channel.fd, h->path, err);
        h->channel.fd = -1;
    }
    discard(h);
    return rc;
}

/* ---- what a file is made of ---- */

static hid_t make_group(hid_t file, const char *name)
{
    const hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
    hid_t group = -1;
    if (creation >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
        group = H5Gcreate2(file, name, H5P_DEFAULT, creation, H5P_DEFAULT);
    H5Pclose(creation);
    return group;
}

/* The groups that `name` lies in, where they are not there yet: the library's own would hold times.
 */
static herr_t make_groups(hid_t file, const char *name)
{
    char group[NAME_MAX_BYTES];
    for (const char *end = strchr(name, '/'); end; end = strchr(end + 1, '/')) {
        snprintf(group, sizeof group, "%.*s", (int)(end - name), name);
        const htri_t there = H5Lexists(file, group, H5P_DEFAULT);
        const hid_t made = there == 0 ? make_group(file, group) : -1;
        if (there < 0 || (there == 0 && made < 0))
            return -1;
        if (made >= 0)
            H5Gclose(made);
    }
    return 0;
}

/* Times are not kept and what is in one piece is not filled in: the bytes depend on what is written
 * alone. */
static hid_t creation_list(const mgr_h5_shape *s)
{
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    herr_t set = list < 0 ? -1 : H5Pset_obj_track_times(list, false);
    if (!s) {
        set |= H5Pset_layout(list, H5D_COMPACT);
    } else if (s->chunk_rows) {
        hsize_t chunk[MGR_MAX_NDIM];
        for (uint32_t d = 0; d < s->ndim; d++)
            chunk[d] = s->shape[d];
        chunk[0] = s->chunk_rows;
        set |= H5Pset_chunk(list, (int)s->ndim, chunk);
        set |= H5Pset_shuffle(list);
        set |= H5Pset_deflate(list, s->level);
    } else {
        set |= H5Pset_layout(list, H5D_CONTIGUOUS);
        set |= H5Pset_fill_time(list, H5D_FILL_TIME_NEVER);
        set |= H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY);
    }
    if (set >= 0)
        return list;
    H5Pclose(list);
    return -1;
}

/* Create a data set; -1 on failure, else the caller's to close. */
static hid_t create_set(mgr_h5 *h, const char *name, hid_t type, hid_t space,
                        const mgr_h5_shape *shape)
{
    const hid_t creation = creation_list(shape);
    hid_t set = -1;
    if (creation >= 0 && type >= 0 && space >= 0 && make_groups(h->file, name) >= 0)
        set = H5Dcreate2(h->file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    H5Pclose(creation);
    return set;
}

int mgr_h5_add(mgr_h5 *h, const char *name, const mgr_h5_shape *s, mgr_err *err)
{
    hsize_t dims[MGR_MAX_NDIM];
    MGR_TRY(check(h, err));
    for (uint32_t d = 0; d < s->ndim; d++)
        dims[d] = s->shape[d];
    const hid_t type = type_of(s->dtype), space = H5Screate_simple((int)s->ndim, dims, NULL);
    const hid_t set = create_set(h, name, type, space, s);
    H5Tclose(type);
    H5Sclose(space);
    if (set < 0)
        return fail(err, MGR_ERR_CREATE, h, "cannot add to", name);
    H5Dclose(set);
    return MGR_OK;
}

/* Texts of `width` bytes each; dims NULL is a scalar. */
static int add_strings(mgr_h5 *h, const char *name, const hsize_t *dims, size_t width,
                       const char *bytes, mgr_err *err)
{
    MGR_TRY(check(h, err));
    const hid_t type = H5Tcopy(H5T_C_S1);
    const hid_t space = dims ? H5Screate_simple(1, dims, NULL) : H5Screate(H5S_SCALAR);
    /* compact ones live in the object header, which holds 64 KiB */
    const mgr_h5_shape plain = {.ndim = 1};
    const bool small = (dims ? dims[0] : 1) * width < 60000;
    hid_t set = -1;
    herr_t written = -1;
    if (type >= 0 && H5Tset_size(type, width ? width : 1) >= 0 &&
        H5Tset_cset(type, H5T_CSET_UTF8) >= 0 && H5Tset_strpad(type, H5T_STR_NULLPAD) >= 0)
        set = create_set(h, name, type, space, small ? NULL : &plain);
    if (set >= 0)
        written = H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, width ? bytes : "");
    const int rc = written < 0 ? fail(err, MGR_ERR_CREATE, h, "cannot add to", name) : MGR_OK;
    H5Dclose(set);
    H5Sclose(space);
    H5Tclose(type);
    return rc;
}

int mgr_h5_add_text(mgr_h5 *h, const char *name, const char *text, size_t len, mgr_err *err)
{
    return add_strings(h, name, NULL, len, text, err);
}

int mgr_h5_add_texts(mgr_h5 *h, const char *name, const char *const *texts, size_t n, mgr_err *err)
{
    const hsize_t dims[1] = {n};
    size_t width = 1;
    char *bytes = NULL;
    for (size_t i = 0; i < n; i++)
        width = strlen(texts[i]) > width ? strlen(texts[i]) : width;
    MGR_TRY(mgr_alloc(&bytes, n, width, err));
    for (size_t i = 0; i < n; i++)
        memcpy(bytes + i * width, texts[i], strlen(texts[i]));
    const int rc = add_strings(h, name, dims, width, bytes, err);
    mgr_free(bytes);
    return rc;
}

int mgr_h5_add_note(mgr_h5 *h, const char *name, const char *key, const char *text, mgr_err *err)
{
    MGR_TRY(check(h, err));
    const hid_t object = H5Oopen(h->file, name, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
    const hid_t space = H5Screate(H5S_SCALAR);
    hid_t attr = -1;
    herr_t written = -1;
    if (object >= 0 && type >= 0 && H5Tset_size(type, strlen(text) + 1) >= 0)
        attr = H5Acreate2(object, key, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attr >= 0)
        written = H5Awrite(attr, type, text);
    const int rc = written < 0 ? fail(err, MGR_ERR_CREATE, h, "cannot note in", name) : MGR_OK;
    H5Aclose(attr);
    H5Sclose(space);
    H5Tclose(type);
    H5Oclose(object);
    return rc;
}

int mgr_h5_add_link(mgr_h5 *h, const char *name, const char *other, mgr_err *err)
{
    MGR_TRY(check(h, err));
    return H5Lcreate_external(other, name, h->file, name, H5P_DEFAULT, H5P_DEFAULT) < 0
               ? fail(err, MGR_ERR_CREATE, h, "cannot link in", name)
               : MGR_OK;
}

/* ---- rows ---- */

static bool describe_set(mgr_h5 *h)
{
    hsize_t dims[H5S_MAX_RANK];
    const hid_t type = H5Dget_type(h->set), space = H5Dget_space(h->set);
    const int ndim = space < 0 ? -1 : H5Sget_simple_extent_dims(space, dims, NULL);
    h->row_bytes = type < 0 ? 0 : H5Tget_size(type);
    for (int d = 1; d < ndim; d++)
        h->row_bytes *= dims[d];
    h->rows = ndim > 0 ? dims[0] : 1;
    const haddr_t at = H5Dget_offset(h->set);
    h->offset = at == HADDR_UNDEF ? UINT64_MAX : at;
    H5Tclose(type);
    H5Sclose(space);
    return ndim >= 0;
}

static int find_set(mgr_h5 *h, const char *name, mgr_err *err)
{
    mgr_h5_set set;
    MGR_TRY(mgr_h5_find(&h->in, name, &set, err));
    h->rows = set.ndim ? set.shape[0] : 1;
    h->row_bytes = set.bytes / h->rows;
    h->offset = set.offset;
    return MGR_OK;
}

/* Make `name` the data set at hand: neighbours are written one after the other. */
static int take_set(mgr_h5 *h, const char *name, mgr_err *err)
{
    MGR_TRY(check(h, err));
    if (strcmp(h->set_name, name) == 0)
        return MGR_OK;
    drop_set(h);
    if (strlen(name) >= sizeof h->set_name)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "the name '%.100s...' is too long", name);
    if (h->file < 0) {
        MGR_TRY(find_set(h, name, err));
    } else {
        h->set = H5Dopen2(h->file, name, H5P_DEFAULT);
        if (h->set < 0 || !describe_set(h))
            return fail(err, MGR_ERR_CREATE, h, "cannot open in", name);
    }
    snprintf(h->set_name, sizeof h->set_name, "%s", name);
    return MGR_OK;
}

int mgr_h5_offset(mgr_h5 *h, const char *name, uint64_t *offset, mgr_err *err)
{
    MGR_TRY(take_set(h, name, err));
    if (h->offset == UINT64_MAX)
        return fail(err, MGR_ERR_CREATE, h, "no place of", name);
    *offset = h->offset;
    return MGR_OK;
}

int mgr_h5_write(mgr_h5 *h, const char *name, uint64_t row, uint64_t rows, const void *bytes,
                 mgr_err *err)
{
    uint64_t offset = 0;
    MGR_TRY(mgr_h5_offset(h, name, &offset, err));
    assert(row + rows <= h->rows);
    return mgr_pwrite_full(h->channel.fd, h->path, bytes, rows * h->row_bytes,
                           offset + row * h->row_bytes, err);
}

/* The library is told of a piece with these many bytes; what they are it only passes on to the
 * channel, which keeps no more of them than their place. */
int mgr_h5_place(mgr_h5 *h, const char *name, uint64_t row, size_t len, uint64_t *offset,
                 mgr_err *err)
{
    const hsize_t first[MGR_MAX_NDIM] = {row};
    char *nothing;
    MGR_TRY(take_set(h, name, err));
    MGR_TRY(mgr_alloc(&nothing, len, 1, err));
    h->channel.placing = true;
    h->channel.place_bytes = 0;
    const herr_t placed = H5Dwrite_chunk(h->set, H5P_DEFAULT, 0, first, len, nothing);
    h->channel.placing = false;
    mgr_free(nothing);
    if (placed < 0 || h->channel.place_bytes != len)
        return fail(err, MGR_ERR_CREATE, h, "no place in", name);
    *offset = h->channel.place;
    return check(h, err);
}

/* ---- reading back ---- */

static int differs(const mgr_h5 *h, const char *name, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_IO, "'%s' data set '%s' reads back differently than written",
                    h->path, name);
}

int mgr_h5_compare(mgr_h5 *h, const char *name, uint64_t row, uint64_t rows, const void *bytes,
                   mgr_err *err)
{
    const char *meant = bytes;
    uint64_t offset;
    void *found;
    MGR_TRY(mgr_h5_offset(h, name, &offset, err));
    if (row + rows > h->rows)
        return differs(h, name, err);
    MGR_TRY(mgr_alloc(&found, 1, h->row_bytes, err));
    int rc = MGR_OK;
    for (uint64_t r = 0; rc == MGR_OK && r < rows; r++) {
        rc = mgr_reader_read(&h->in, offset + (row + r) * h->row_bytes, found, h->row_bytes, err);
        if (rc == MGR_OK && memcmp(found, meant + r * h->row_bytes, h->row_bytes) != 0)
            rc = differs(h, name, err);
    }
    mgr_free(found);
    return rc;
}

int mgr_h5_compare_text(mgr_h5 *h, const char *name, const char *text, size_t len, mgr_err *err)
{
    mgr_buf found = {0};
    int rc = mgr_h5_read_text(&h->in, name, len, &found, err);
    if (rc == MGR_OK && (found.len != len || memcmp(found.data, text, len) != 0))
        rc = differs(h, name, err);
    mgr_buf_clear(&found);
    return rc;
}

const char *mgr_h5_library(char *out, size_t size)
{
    unsigned major = 0, minor = 0, release = 0;
    if (H5get_libversion(&major, &minor, &release) < 0)
        major = 0;
    snprintf(out, size, "%u.%u.%u", major, minor, release);
    return out;
}
