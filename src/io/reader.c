#include "io/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/stop.h"
#include "io/file.h"

#define FUSE_MAGIC 0x65735546

/* File systems in user space often number their files as they meet them. */
static uint64_t inode_of(int fd, const struct stat *st)
{
    struct statfs fs;
    const bool lasting = fstatfs(fd, &fs) == 0 && fs.f_type != FUSE_MAGIC;
    return lasting ? (uint64_t)st->st_ino : 0;
}

int mgr_reader_open(mgr_reader *reader, const char *path, mgr_err *err)
{
    mgr_reader r = {.name = path, .fd = -1};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would make us wait */
    if (fd < 0)
        return mgr_fail_errno(err, errno == ENOENT ? MGR_ERR_NOT_FOUND : MGR_ERR_IO, errno,
                              "cannot open '%s'", path);
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not a regular file", path);
    }
    r.fd = fd;
    r.size = (uint64_t)st.st_size;
    r.inode = inode_of(fd, &st);
    r.modified = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
    *reader = r;
    return MGR_OK;
}

void mgr_reader_memory(mgr_reader *reader, const char *name, const void *memory, size_t len)
{
    *reader = (mgr_reader){.name = name, .size = len, .fd = -1, .memory = memory};
}

int mgr_reader_window(mgr_reader *reader, const mgr_reader *whole, uint64_t offset, uint64_t len,
                      mgr_err *err)
{
    if (offset > whole->size || len > whole->size - offset)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has %llu bytes, an item at %llu needs %llu",
                        whole->name, (unsigned long long)whole->size, (unsigned long long)offset,
                        (unsigned long long)len);
    *reader = *whole;
    reader->base += offset;
    reader->size = len;
    return MGR_OK;
}

int mgr_reader_read(const mgr_reader *reader, uint64_t offset, void *out, size_t len, mgr_err *err)
{
    if (offset > reader->size || len > reader->size - offset)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is truncated: %llu bytes, needs %llu",
                        reader->name, (unsigned long long)reader->size,
                        (unsigned long long)(offset + len));
    if (reader->fd < 0) {
        memcpy(out, (const char *)reader->memory + reader->base + offset, len);
        return MGR_OK;
    }
    MGR_TRY(mgr_check_stop(err)); /* headers of thousands of files, on a disk that may be slow */
    return mgr_pread_full(reader->fd, reader->name, out, len, reader->base + offset, err);
}

void mgr_reader_close(mgr_reader *reader)
{
    if (reader->fd >= 0)
        close(reader->fd);
    reader->fd = -1;
}
