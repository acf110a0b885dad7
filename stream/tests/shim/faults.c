/* Loaded before libc (LD_PRELOAD), it is the disk under the log's files.
 *
 * Faults: chosen calls fail. A test arms them through a file that both hold; POSTHASTE_FAULTS names it.
 *
 * Power cuts: beside each file stands `<file>.synced`, what would be left of it if the power failed now: only what was
 * synced. After a failed sync the pages that it was about count as clean and are never written again unless they are
 * changed again, as Linux does it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("POSTHASTE_FAULTS");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd < 0) _exit(99);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (control == MAP_FAILED) _exit(99);
}

/* The changes of a file since its last sync. */
struct change {
    off64_t at;
    size_t length; /* 0: cut off at `at` */
    struct change *next;
};

static struct file {
    char name[256];
    struct change *first, **last;
    struct file *next;
} *files;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The log's file behind a descriptor; NULL for any other. Shared memory is never synced and not looked at. */
static struct file *file_of(int fd) {
    char link[64], name[256];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0 || !control) return NULL;
    name[length] = 0;
    if (!strstr(name, "/log.db") || strstr(name, "-shm")) return NULL;
    struct file *file = files;
    while (file && strcmp(file->name, name)) file = file->next;
    if (!file) {
        file = calloc(1, sizeof *file);
        strcpy(file->name, name);
        file->last = &file->first;
        file->next = files;
        files = file;
    }
    return file;
}

/* Whether this call shall fail; `first` tells the first failing one. */
static int fails(int64_t call, int *first) {
    if (control->call != call || control->skip-- > 0) return 0;
    *first = control->fired == 0;
    if (control->fired >= control->times) return 0;
    control->fired++;
    errno = (int)control->error;
    return 1;
}

static void changed(struct file *file, off64_t at, size_t length) {
    struct change *change = malloc(sizeof *change);
    *change = (struct change){at, length, NULL};
    *file->last = change;
    file->last = &change->next;
}

/* Brings the synced image up to date, or forgets what it should have got. */
static void settle(struct file *file, int fd, int synced) {
    char name[300];
    snprintf(name, sizeof name, "%s.synced", file->name);
    int image = synced ? open(name, O_RDWR | O_CREAT, 0600) : -1;
    while (file->first) {
        struct change *change = file->first;
        char *bytes = change->length ? malloc(change->length) : NULL;
        ssize_t length = synced && bytes ? pread64(fd, bytes, change->length, change->at) : 0;
        if (length > 0 && REAL(pwrite64)(image, bytes, length, change->at) < 0) _exit(98);
        if (synced && !bytes && REAL(ftruncate64)(image, change->at)) _exit(98);
        file->first = change->next;
        free(bytes);
        free(change);
    }
    file->last = &file->first;
    if (image >= 0) close(image);
}

static int sync_file(int fd, int (*real)(int)) {
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd);
    int first, failed = file && fails(1, &first);
    int result = failed ? -1 : real(fd), error = failed ? (int)control->error : errno;
    if (file) settle(file, fd, result == 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int fsync(int fd) { return sync_file(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_file(fd, REAL(fdatasync)); }

int ftruncate64(int fd, off64_t length) {
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd);
    int first, result = file && fails(2, &first) ? -1 : REAL(ftruncate64)(fd, length);
    if (file && result == 0) changed(file, length, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

/* Half of the first failing write reaches the file, as on a disk with that much room left. */
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd);
    int first, failed = file && fails(2, &first), torn = failed && first && count > 1;
    ssize_t written = failed && !torn ? -1 : REAL(pwrite64)(fd, bytes, torn ? count / 2 : count, at);
    if (file && written > 0) changed(file, at, written);
    pthread_mutex_unlock(&lock);
    return written;
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }
ssize_t write(int fd, const void *bytes, size_t count) {
    off64_t at = lseek64(fd, 0, SEEK_CUR);
    pthread_mutex_lock(&lock);
    int ours = at >= 0 && file_of(fd) != NULL;
    pthread_mutex_unlock(&lock);
    if (!ours) return REAL(write)(fd, bytes, count);
    ssize_t written = pwrite64(fd, bytes, count, at);
    if (written > 0) lseek64(fd, at + written, SEEK_SET);
    return written;
}
