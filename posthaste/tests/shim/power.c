/* Loaded before libc (LD_PRELOAD), it is the disk of a machine whose power fails: the process is killed at its n-th call
 * that changes or syncs something in the data directory, and what a disk could have kept of the calls before is told
 * from the journal: for each call, what it changed and what was there before it.
 *
 * POWER_SHIM_DATA    the data directory, absolute
 * POWER_SHIM_JOURNAL an existing directory beside it; gets `journal`, and a link to each file that is unlinked
 * POWER_SHIM_CUT     after so many calls the power fails; 0: never
 * POWER_SHIM_LIES    from this call on the disk says that it has synced files, and has not; 0: never
 *
 * Shared memory (-shm) and the lock file are no data and are passed over. What would change data in a way that is not
 * known here ends the process with status 97 rather than go unseen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* As `Entry` in power_loss.rs reads it, in the machine's order; then the name, then what was there before. */
enum { WRITE = 1, TRUNCATE, SYNC, CREATE, UNLINK, SYNC_DIR, LIE };
struct entry {
    int64_t call;
    int64_t at;     /* WRITE: where; TRUNCATE: the new length; UNLINK: the number of the link */
    int64_t length; /* WRITE: how many bytes */
    int64_t before; /* WRITE, TRUNCATE: the file's length before */
    int64_t name;   /* bytes of the name */
    int64_t old;    /* bytes of what was there before */
};

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define PATH 512

static char data[PATH], beside[PATH];
static size_t data_length;
static int journal = -1;
static int64_t calls, cut, lies, links;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void give_up(const char *what) {
    dprintf(2, "the power shim does not know %s\n", what);
    _exit(97);
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("POWER_SHIM_DATA"), *to = getenv("POWER_SHIM_JOURNAL");
    const char *when = getenv("POWER_SHIM_CUT"), *from = getenv("POWER_SHIM_LIES");
    if (!dir || !to || !when || !from) give_up("what to do");
    snprintf(data, sizeof data, "%s", dir);
    snprintf(beside, sizeof beside, "%s", to);
    data_length = strlen(data);
    cut = atoll(when);
    lies = atoll(from);
    char name[PATH + 16];
    snprintf(name, sizeof name, "%s/journal", beside);
    journal = REAL(open64)(name, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (journal < 0) give_up("where to write");
}

/* The name within the data directory; NULL for what is elsewhere or no data. */
static const char *name_in_data(const char *path) {
    if (journal < 0 || strncmp(path, data, data_length) || path[data_length] != '/') return NULL;
    const char *name = path + data_length + 1;
    size_t length = strlen(name);
    if (!strcmp(name, "lock") || (length > 4 && !strcmp(name + length - 4, "-shm"))) return NULL;
    if (strstr(name, " (deleted)")) return NULL; /* Nobody will ever see it again. */
    return name;
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return path;
}

static const char *name_of(int fd, char *path) { return path_of(fd, path) ? name_in_data(path) : NULL; }

static void put(const void *bytes, size_t length) {
    if (length && REAL(write)(journal, bytes, length) != (ssize_t)length) give_up("how to go on without its journal");
}

/* Writes down what is about to be done; the n-th time the power fails in place of it. Holds the lock. */
static void about_to(struct entry entry, const char *name, const void *old) {
    if (++calls == cut) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    entry.name = (int64_t)strlen(name);
    put(&entry, sizeof entry);
    put(name, (size_t)entry.name);
    put(old, (size_t)entry.old);
}

/* A write or truncation of `name`, of which [at, end) is changed or goes. */
static void about_to_change(int fd, const char *name, int64_t call, int64_t at, int64_t length) {
    struct stat64 is;
    if (fstat64(fd, &is)) give_up("the length of a file");
    int64_t end = call == TRUNCATE ? is.st_size : at + length;
    if (end > is.st_size) end = is.st_size;
    int64_t old = end > at ? end - at : 0;
    char *bytes = malloc((size_t)old + 1);
    /* The descriptor may be for writing only. */
    char path[PATH];
    int reader = old ? REAL(open64)(path_of(fd, path), O_RDONLY | O_CLOEXEC) : -1;
    if (old && pread64(reader, bytes, (size_t)old, at) != old) give_up("what was there before");
    if (reader >= 0) close(reader);
    about_to((struct entry){call, at, length, is.st_size, 0, old}, name, bytes);
    free(bytes);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    char path[PATH];
    const char *name = name_of(fd, path);
    if (!name) return REAL(pwrite64)(fd, bytes, count, at);
    pthread_mutex_lock(&lock);
    about_to_change(fd, name, WRITE, at, (int64_t)count);
    ssize_t written = REAL(pwrite64)(fd, bytes, count, at);
    pthread_mutex_unlock(&lock);
    if (written >= 0 && (size_t)written != count) give_up("half a write");
    return written;
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

ssize_t write(int fd, const void *bytes, size_t count) {
    char path[PATH];
    if (name_of(fd, path)) give_up("a write without a place");
    return REAL(write)(fd, bytes, count);
}

int ftruncate64(int fd, off64_t length) {
    char path[PATH];
    const char *name = name_of(fd, path);
    if (!name) return REAL(ftruncate64)(fd, length);
    pthread_mutex_lock(&lock);
    about_to_change(fd, name, TRUNCATE, length, 0);
    int result = REAL(ftruncate64)(fd, length);
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int sync_file(int fd, int (*real)(int)) {
    char path[PATH];
    const char *name = name_of(fd, path);
    int dir = !name && path_of(fd, path) && !strcmp(path, data);
    if (!name && !dir) return real(fd);
    pthread_mutex_lock(&lock);
    /* Before it: a cut in the middle of a sync leaves whatever of it. */
    struct entry entry = {dir ? SYNC_DIR : lies && calls >= lies ? LIE : SYNC, 0, 0, 0, 0, 0};
    about_to(entry, dir ? "" : name, NULL);
    pthread_mutex_unlock(&lock);
    return 0;
}
int fsync(int fd) { return sync_file(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_file(fd, REAL(fdatasync)); }

static int open_file(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    const char *name = name_in_data(path);
    int makes = name && (flags & O_CREAT) && access(path, F_OK);
    if (name && !makes && (flags & O_TRUNC)) give_up("a file emptied as it is opened");
    if (!makes) return real(path, flags, mode);
    pthread_mutex_lock(&lock);
    about_to((struct entry){CREATE, 0, 0, 0, 0, 0}, name, NULL);
    int fd = real(path, flags, mode);
    pthread_mutex_unlock(&lock);
    if (fd < 0) give_up("a file that can't be made");
    return fd;
}
#define MODE(flags, mode) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_file(REAL(open64), path, flags, mode);
}
int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_file(REAL(open64), path, flags, mode);
}

int unlink(const char *path) {
    const char *name = name_in_data(path);
    if (!name || access(path, F_OK)) return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    char kept[PATH + 32];
    snprintf(kept, sizeof kept, "%s/unlinked.%lld", beside, (long long)++links);
    if (link(path, kept)) give_up("how to keep what is unlinked");
    about_to((struct entry){UNLINK, links, 0, 0, 0, 0}, name, NULL);
    int result = REAL(unlink)(path);
    pthread_mutex_unlock(&lock);
    return result;
}

/* What else could change data. */
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) {
    char path[PATH];
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && name_of(fd, path)) give_up("data that is mapped");
    return REAL(mmap64)(at, length, protection, flags, fd, offset);
}
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap64(at, length, protection, flags, fd, offset);
}
static int known(int fd, const char *what) {
    char path[PATH];
    if (fd >= 0 && name_of(fd, path)) give_up(what);
    return 1;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return known(fd, "writev") ? REAL(writev)(fd, parts, count) : -1;
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return known(fd, "pwritev") ? REAL(pwritev64)(fd, parts, count, at) : -1;
}
int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    return known(fd, "fallocate") ? REAL(fallocate64)(fd, mode, at, length) : -1;
}
int posix_fallocate64(int fd, off64_t at, off64_t length) {
    return known(fd, "posix_fallocate") ? REAL(posix_fallocate64)(fd, at, length) : -1;
}
int rename(const char *from, const char *to) {
    if (name_in_data(from) || name_in_data(to)) give_up("rename");
    return REAL(rename)(from, to);
}
