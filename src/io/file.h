/*
 * Files: full transfers, durable creation, staging and publishing of an output directory. The only
 * room that touches file descriptors and directories.
 */
#ifndef MGR_IO_FILE_H
#define MGR_IO_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/err.h"

/* Exactly `len` bytes at `offset`, in pieces of at most 1 GiB. `name` is for messages.
 * Errors: MGR_ERR_FORMAT at an early end of file, MGR_ERR_IO, MGR_ERR_SPACE (disk full). Local. */
int mgr_pread_full(int fd, const char *name, void *out, size_t len, uint64_t offset,
                   mgr_err *err) MGR_NODISCARD;
int mgr_pwrite_full(int fd, const char *name, const void *bytes, size_t len, uint64_t offset,
                    mgr_err *err) MGR_NODISCARD;

/* Ask the system to begin bringing this range to the disk, so that it happens while we compute and
 * not all at once in fsync. A hint: nothing fails, nothing is promised. Local. */
void mgr_begin_writeback(int fd, uint64_t offset, size_t len);

/* Open for reading, for writing an existing file, or for both; *fd is the caller's to close. Local.
 */
int mgr_open_read(const char *path, int *fd, mgr_err *err) MGR_NODISCARD;
int mgr_open_write(const char *path, int *fd, mgr_err *err) MGR_NODISCARD;
int mgr_open_both(const char *path, int *fd, mgr_err *err) MGR_NODISCARD;

/* What an errno of a call that writes means: MGR_ERR_SPACE or MGR_ERR_IO. A disk may be found full
 * as late as in fsync or close, of a file or of a directory. */
mgr_code mgr_write_code(int sys);

/* fsync, and leave open. Local. */
int mgr_sync(int fd, const char *name, mgr_err *err) MGR_NODISCARD;

/* fsync, then close. Neither is ever retried: Linux drops the dirty pages after a failed fsync and
 * reports success the next time. Local. */
int mgr_sync_close(int fd, const char *name, mgr_err *err) MGR_NODISCARD;
void mgr_close(int fd);

/* Create `path`, which must not exist, to read and write. Local. */
int mgr_create_open(const char *path, int *fd, mgr_err *err) MGR_NODISCARD;

/* Cut or stretch a file to `bytes` bytes. Local. */
int mgr_set_size(int fd, const char *name, uint64_t bytes, mgr_err *err) MGR_NODISCARD;

/* Have the file system set aside what `bytes` bytes of a file will take, where it can (fallocate);
 * nothing is written. Errors: MGR_ERR_SPACE; MGR_ERR_UNSUPPORTED where it cannot. Local. */
int mgr_reserve(int fd, const char *name, uint64_t bytes, mgr_err *err) MGR_NODISCARD;

/* Create `path`, which must not exist, with `bytes` bytes (sparse). Local. */
int mgr_create_sized(const char *path, uint64_t bytes, mgr_err *err) MGR_NODISCARD;

/* Create `path` with this content and make it durable. Local. */
int mgr_write_file(const char *path, const void *bytes, size_t len, mgr_err *err) MGR_NODISCARD;

/* The whole of a file of at most `limit` bytes, appended to *out. Local. */
int mgr_read_file(const char *path, uint64_t limit, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* Would mgr_read_file take it? Local. */
int mgr_check_file(const char *path, uint64_t limit, mgr_err *err) MGR_NODISCARD;

/* Directories. mgr_make_dir fails with MGR_ERR_EXISTS if it is there; mgr_make_dirs does not and
 * makes parents. mgr_remove_tree is silent if there is nothing, removes links and not what they
 * point to, and does not enter what is mounted. mgr_sync_dir makes the names in a directory
 * durable. mgr_rename is rename(2) and makes both parents durable. Local. */
int mgr_make_dir(const char *path, mgr_err *err) MGR_NODISCARD;
int mgr_make_dirs(const char *path, mgr_err *err) MGR_NODISCARD;
int mgr_remove_tree(const char *path, mgr_err *err) MGR_NODISCARD;
int mgr_sync_dir(const char *path, mgr_err *err) MGR_NODISCARD;
int mgr_rename(const char *from, const char *to, mgr_err *err) MGR_NODISCARD;

/* What an entry of a folder is: a regular file of one name, a folder, or something that is neither
 * (a link, a file with a second name, a device). */
typedef enum mgr_entry { MGR_ENTRY_FILE, MGR_ENTRY_FOLDER, MGR_ENTRY_OTHER } mgr_entry;
typedef enum mgr_verdict { MGR_KEEP, MGR_ENTER, MGR_DROP, MGR_REFUSE } mgr_verdict;
typedef mgr_verdict mgr_judge(const void *context, const char *path, mgr_entry kind);

/* Judge every entry below the folder `root`, by its path from there: leave it, go into it, remove
 * it (a folder must be empty), or fail with its name (MGR_ERR_EXISTS). No link is followed. Local.
 */
int mgr_sweep(const char *root, mgr_judge *judge, const void *context, mgr_err *err) MGR_NODISCARD;

/* Hold the directory `path` for this process: *fd is the hold, closed with mgr_close, and ends with
 * the process however it ends. *taken tells that another process holds it; then there is no *fd.
 * Where the file system has no locks, everyone gets one. Local. */
int mgr_hold_dir(const char *path, int *fd, bool *taken, mgr_err *err) MGR_NODISCARD;

/* Is `path` still the directory that `fd` holds? */
bool mgr_is_held(const char *path, int fd);

/* A sign of life, for where locks do not reach other hosts: until it is stopped a thread writes the
 * file `path` anew each second, with this host's name. NULL where that cannot be: the run goes on
 * without. mgr_beat_is_there tells whether the file is of another host, whose name it gives, and is
 * being written: it looks for some seconds. Local. */
typedef struct mgr_beat mgr_beat;
mgr_beat *mgr_beat_start(const char *path);
void mgr_beat_stop(mgr_beat **beat);
bool mgr_beat_is_there(const char *path, char *host, size_t size);

/* Give the directory `from` the name `to`. With `replace` an existing `to` is swapped out in one
 * step where the file system can (renameat2), and then removed; without, an existing one is an
 * error, even an empty one. Durable on return. Local. */
int mgr_publish(const char *from, const char *to, bool replace, mgr_err *err) MGR_NODISCARD;

/* Ask the system to forget what it holds in memory of a file; it may decline. For measurements.
 * Local. */
int mgr_drop_cached(const char *path, mgr_err *err) MGR_NODISCARD;

/* Size of a file. Local. */
int mgr_file_bytes(const char *path, uint64_t *bytes, mgr_err *err) MGR_NODISCARD;

bool mgr_path_exists(const char *path);
bool mgr_is_dir(const char *path);
bool mgr_is_link(const char *path);
/* Is the one the other, or below it, once links are followed? False if one is not there. */
bool mgr_is_inside(const char *path, const char *directory);
/* Refuse a link that leads out of `directory`, unless to the blobs of a snapshot of the hub's
 * cache: MGR_ERR_UNSUPPORTED. */
int mgr_check_link(const char *path, const char *directory, mgr_err *err) MGR_NODISCARD;

/* The names in a directory, sorted bytewise, without "." and ".."; owned by `arena`. Local. */
int mgr_list_dir(const char *path, mgr_arena *arena, const char ***names, size_t *n,
                 mgr_err *err) MGR_NODISCARD;

/* All that lies below the directory `path`, as paths relative to it, owned by `arena`: files,
 * links, which are not followed, and empty directories, these with a slash at the end; sorted.
 * Local. Errors: MGR_ERR_EXISTS where it is a mount or holds one, or is very deep. */
int mgr_list_tree(const char *path, mgr_arena *arena, const char ***names, size_t *n,
                  mgr_err *err) MGR_NODISCARD;

/* Is `path` itself a file, not a link to one? */
bool mgr_is_plain_file(const char *path);

/* The directory part of a path ("." if there is none), owned by `arena`. */
int mgr_dirname(const char *path, mgr_arena *arena, const char **out, mgr_err *err) MGR_NODISCARD;

/* Bytes that this user can still write on the file system of `path`. Local. */
int mgr_free_space(const char *path, uint64_t *bytes, mgr_err *err) MGR_NODISCARD;

/* How long a name in `directory`, and a path, may be. Local. */
size_t mgr_name_max(const char *directory);
size_t mgr_path_max(void);

/* Bytes that the regular file `path` takes on its file system, holes not counted; 0 if there is
 * none. Local. */
uint64_t mgr_file_room(const char *path);

/* What the kernel says of quotas: the tightest hard limit, and whose it is; no `whose` where there
 * is none. Not all file systems can be asked. */
typedef struct mgr_quota {
    bool asked;
    const char *whose; /* "user", "group" or "project" */
    uint64_t limit, left;
} mgr_quota;
void mgr_quota_ask(int fd, mgr_quota *quota);

/* What was found out about a place. */
typedef struct mgr_room {
    bool tried;
    bool reserved; /* all that is needed was, and was given back */
    mgr_quota quota;
} mgr_room;

/* Does the place of `path`, which is made and removed again, take folders of this name, files of
 * `largest` bytes, `bytes` in all by quota, and the calls of a run? Local.
 * Errors: MGR_ERR_CREATE, MGR_ERR_SPACE. */
int mgr_try_folder(const char *path, uint64_t largest, uint64_t bytes, mgr_room *room,
                   mgr_err *err) MGR_NODISCARD;

/* Does the folder lie on Lustre, whose files are striped over servers as their folder says? Local.
 */
bool mgr_is_on_lustre(const char *directory);

/* Peak (of this program, not of what it was started from) and current resident memory of this
 * process in bytes; 0 where unknown. */
uint64_t mgr_peak_rss(void);
/* The peak begins anew, where the system can. For measurements. */
void mgr_forget_peak_rss(void);

/* What the kernel calls this machine's CPU; "unknown" where it does not. Local. */
const char *mgr_cpu_name(char *out, size_t size);
uint64_t mgr_current_rss(void);

/* Text to the standard error, from a signal's handler: nothing is allocated or buffered. Local. */
void mgr_say_from_handler(const char *text, size_t len);

#endif
