/* Preloaded into the daemon's processes: file operations that fail, and a clock that is wrong.
 *
 * What it does is told by a file that is mapped into all of them (see shim.py): of the operations in
 * `operations` on paths below `below`, `permille` of a thousand fail with `error`. The clock of the
 * day is off by `clock_seconds`; the steady clock is right, and so are the times of files, as where
 * they lie on a server.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1, WRITE = 2, SYNC = 4, RENAME = 8, OPEN = 16 };

struct control {
    int64_t clock_seconds;
    uint32_t permille, operations, error, hits;
    char below[2048];
};

static volatile struct control *control;

__attribute__((constructor)) static void set_up(void) {
    const char *path = getenv("FAULTS_CONTROL");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) control = mapped;
}

static int unlucky(uint32_t operation) {
    static __thread uint64_t state;
    if (!control || !(control->operations & operation) || !control->permille) return 0;
    if (!state) {
        struct timespec now;
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
        state = ((uint64_t)syscall(SYS_gettid) << 32) ^ (uint64_t)now.tv_nsec ^ 0x9E3779B97F4A7C15u;
    }
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return state % 1000 < control->permille;
}

static int fails(void) {
    __sync_fetch_and_add(&control->hits, 1);
    errno = (int)control->error;
    return -1;
}

static int is_below(const char *path) {
    return !strncmp(path, (const char *)control->below, strlen((const char *)control->below));
}

static int hit_file(int file, uint32_t operation) {
    char link[64], path[4096];
    if (!unlucky(operation)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return is_below(path);
}

static int hit_path(const char *path, uint32_t operation) {
    return path && unlucky(operation) && is_below(path);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OF_FILE(operation, type, name, parameters, ...) \
    type name parameters { \
        REAL(name); \
        return hit_file(file, operation) ? (type)fails() : real(__VA_ARGS__); \
    }

OF_FILE(READ, ssize_t, read, (int file, void *to, size_t size), file, to, size)
OF_FILE(READ, ssize_t, pread, (int file, void *to, size_t size, off_t at), file, to, size, at)
OF_FILE(READ, ssize_t, pread64, (int file, void *to, size_t size, off64_t at), file, to, size, at)
OF_FILE(WRITE, ssize_t, write, (int file, const void *from, size_t size), file, from, size)
OF_FILE(WRITE, ssize_t, pwrite, (int file, const void *from, size_t size, off_t at), file, from, size, at)
OF_FILE(WRITE, ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t at), file, from, size, at)
OF_FILE(WRITE, int, ftruncate, (int file, off_t size), file, size)
OF_FILE(WRITE, int, ftruncate64, (int file, off64_t size), file, size)
OF_FILE(SYNC, int, fsync, (int file), file)
OF_FILE(SYNC, int, fdatasync, (int file), file)

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *where, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (hit_file(to, WRITE) || hit_file(from, READ)) return fails();
    return real(from, at, to, where, size, flags);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return hit_path(to, RENAME) ? fails() : real(from, to);
}

int renameat(int at, const char *from, int where, const char *to) {
    REAL(renameat);
    return hit_path(to, RENAME) ? fails() : real(at, from, where, to);
}

#include <stdarg.h>
#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        return hit_path(path, OPEN) ? fails() : real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (!status && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += control->clock_seconds;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec; now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

/* Who computed a deadline by the wrong clock must not wait by the right one (Python 3.10's locks). */
static struct timespec right(const struct timespec *until) {
    struct timespec other = *until;
    if (control) other.tv_sec -= control->clock_seconds;
    return other;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    REAL(sem_timedwait);
    struct timespec other = right(until);
    return real(semaphore, &other);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    REAL(pthread_cond_timedwait);
    struct timespec now, steady, other = right(until);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &steady);
    /* Conditions may go by the steady clock: their deadlines are seconds since the start. */
    return real(condition, mutex, until->tv_sec < now.tv_sec / 2 ? until : &other);
}
