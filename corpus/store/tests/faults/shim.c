/* Loaded before the C library: makes the n-th call that changes a disk fail, once or from then on.
 * FAULT_AT is n, FAULT_FOREVER and FAULT_FULL (ENOSPC in place of EIO) are set or not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long calls;

static int fails(void)
{
	const char *at = getenv("FAULT_AT");
	long n = at ? atol(at) : 0;
	long now = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);

	if (n == 0 || now < n || (now > n && !getenv("FAULT_FOREVER")))
		return 0;
	errno = getenv("FAULT_FULL") ? ENOSPC : EIO;
	return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* What is said to the parent is no part of it. */
ssize_t write(int fd, const void *p, size_t n) { return fd > 2 && fails() ? -1 : NEXT(write)(fd, p, n); }
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) { return fails() ? -1 : NEXT(pwrite64)(fd, p, n, at); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return fails() ? -1 : NEXT(pwrite)(fd, p, n, at); }
int fsync(int fd) { return fails() ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails() ? -1 : NEXT(fdatasync)(fd); }
int rename(const char *a, const char *b) { return fails() ? -1 : NEXT(rename)(a, b); }
int mkdir(const char *p, mode_t m) { return fails() ? -1 : NEXT(mkdir)(p, m); }
int ftruncate64(int fd, off64_t n) { return fails() ? -1 : NEXT(ftruncate64)(fd, n); }
int ftruncate(int fd, off_t n) { return fails() ? -1 : NEXT(ftruncate)(fd, n); }

#define OPEN(name)                                                                                 \
	int name(const char *p, int flags, ...)                                                    \
	{                                                                                          \
		va_list more;                                                                      \
		va_start(more, flags);                                                             \
		mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0;          \
		va_end(more);                                                                      \
		if ((flags & O_CREAT) && fails())                                                  \
			return -1;                                                                 \
		return NEXT(name)(p, flags, mode);                                                 \
	}
OPEN(open)
OPEN(open64)
