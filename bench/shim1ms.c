/* Makes fsync and fdatasync return 1 ms after they were called, without syncing: a disk of known
 * speed, for benchmarks only. Loaded with LD_PRELOAD into the process that is measured.
 *
 * SHIM1MS_COUNT names a file of 8 bytes at least, in which the calls are counted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define SYNC_NS 1000000L
#define SECOND_NS 1000000000L

static _Atomic uint64_t fallback;
static _Atomic uint64_t *count = &fallback;

__attribute__((constructor)) static void open_count(void)
{
    const char *path = getenv("SHIM1MS_COUNT");
    if (path == NULL)
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        abort(); /* A count that stays 0 would look like a store that never syncs. */
    void *page = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED)
        abort();
    count = page;
}

static int wait_out(int fd)
{
    static _Thread_local int precise;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (fcntl(fd, F_GETFD) < 0)
        return -1; /* EBADF, as the real ones say */
    if (!precise) {
        /* The kernel may wake a thread 50 us late by default, which would be 5 % of it. */
        prctl(PR_SET_TIMERSLACK, 1UL);
        precise = 1;
    }
    until.tv_nsec += SYNC_NS;
    if (until.tv_nsec >= SECOND_NS) {
        until.tv_sec += 1;
        until.tv_nsec -= SECOND_NS;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
    atomic_fetch_add(count, 1);
    return 0;
}

int fsync(int fd)
{
    return wait_out(fd);
}

int fdatasync(int fd)
{
    return wait_out(fd);
}
