/* Loaded before libc (LD_PRELOAD): makes chosen calls on the log's files fail, as a disk does. A test arms it through
 * a file that both hold; POSTHASTE_FAULTS names it. Calls on other files are passed on untouched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* As `Control` in disk.rs has it: five numbers of eight bytes in the machine's order. */
struct control {
    int64_t call;  /* 0: none, 1: syncs, 2: writes */
    int64_t error; /* errno */
    int64_t skip;  /* so many calls go well first */
    int64_t times; /* so many fail then */
    int64_t fired; /* so many have failed */
};

static volatile struct control *control;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("POSTHASTE_FAULTS");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd < 0) {
        fprintf(stderr, "faults: no control file\n");
        _exit(99);
    }
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (control == MAP_FAILED) _exit(99);
}

static int is_ours(int fd) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    return strstr(name, "/log.db") != NULL;
}

/* Whether this call shall fail; the first failing write is torn where it can be. */
static int fails(int64_t call, int fd, int *first) {
    if (!control || control->call != call || !is_ours(fd)) return 0;
    if (__atomic_fetch_sub(&control->skip, 1, __ATOMIC_SEQ_CST) > 0) return 0;
    int64_t fired = __atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST);
    if (fired >= control->times) return 0;
    if (first) *first = fired == 0;
    errno = (int)control->error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return fails(1, fd, NULL) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails(1, fd, NULL) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t length) { return fails(2, fd, NULL) ? -1 : REAL(ftruncate)(fd, length); }
int ftruncate64(int fd, off64_t length) { return fails(2, fd, NULL) ? -1 : REAL(ftruncate64)(fd, length); }

/* Half of the first failing write reaches the file, as on a disk with that much room left. */
ssize_t write(int fd, const void *bytes, size_t count) {
    int first = 0;
    if (!fails(2, fd, &first)) return REAL(write)(fd, bytes, count);
    return first && count > 1 ? REAL(write)(fd, bytes, count / 2) : -1;
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    int first = 0;
    if (!fails(2, fd, &first)) return REAL(pwrite)(fd, bytes, count, at);
    return first && count > 1 ? REAL(pwrite)(fd, bytes, count / 2, at) : -1;
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    int first = 0;
    if (!fails(2, fd, &first)) return REAL(pwrite64)(fd, bytes, count, at);
    return first && count > 1 ? REAL(pwrite64)(fd, bytes, count / 2, at) : -1;
}
