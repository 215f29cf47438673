/*
 * What mapping huge pages piece by piece costs: UFFDIO_CONTINUE of 4 KiB at a time against whole
 * pages and against a shmem file, and the page tables that pieces need. Runs in a guest; ci/bench/hgm
 * makes a table of it. Each line is NAME, VALUE and UNIT between tabs. Exit 0, or 4 with the reason
 * where the kernel cannot do this.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PIECE 4096ull
#define ADVICE_SPLIT 26
#define ADVICE_COLLAPSE 25
/* Rounds in which all measurements take turns; medians are told. */
#define ROUNDS 7
/* Bytes continued piece by piece in each. */
#define SMALL (16ull << 20)

static int uffd;

static void give_up(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(4);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* KiB of page tables this process has. */
static double tables(void)
{
	char line[128];
	long kib = -1;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmPTE: %ld kB", &kib) == 1)
			break;
	if (!f || kib < 0)
		give_up("no VmPTE in /proc/self/status");
	fclose(f);
	return kib;
}

/* A file of `size` bytes whose pages, of `page` bytes each, are all there. */
static int filled(unsigned flags, size_t size, size_t page)
{
	int fd = syscall(SYS_memfd_create, "bench", flags);
	char *all;

	if (fd < 0 || ftruncate(fd, size))
		give_up("no file of such pages");
	all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (all == MAP_FAILED)
		give_up("too few huge pages");
	for (size_t at = 0; at < size; at += page)
		all[at] = 1;
	/* The one that is served shares no page table with it. */
	munmap(all, size);
	return fd;
}

static char *mapped(int fd, size_t size)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		give_up("mmap");
	return at;
}

/* The same for pieces: tables that are left empty stay, so each measurement has a mapping of its own. */
static char *splittable(int fd, size_t size)
{
	char *at = mapped(fd, size);

	if (madvise(at, size, ADVICE_SPLIT))
		give_up("MADV_SPLIT: no high-granularity mapping here");
	return at;
}

static void serve(char *at, size_t size)
{
	struct uffdio_register r = {
		.range = { (unsigned long)at, size }, .mode = UFFDIO_REGISTER_MODE_MINOR,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &r))
		give_up("UFFDIO_REGISTER");
}

static void proceed(char *at, size_t len)
{
	struct uffdio_continue c = { .range = { (unsigned long)at, len } };

	if (ioctl(uffd, UFFDIO_CONTINUE, &c) || c.mapped != (long long)len)
		give_up("UFFDIO_CONTINUE");
}

/* Seconds for one call in steps of `step` over `bytes`; the mapping is gone afterwards. */
static double per_call(char *at, size_t size, size_t bytes, size_t step)
{
	double start;

	serve(at, size);
	start = now();
	for (size_t k = 0; k < bytes; k += step)
		proceed(at + k, step);
	start = (now() - start) / (bytes / step);
	munmap(at, size);
	return start;
}

static double median(double *all)
{
	qsort(all, ROUNDS, sizeof all[0], by_value);
	return all[ROUNDS / 2];
}

static void row(const char *of, const char *name, double value, const char *unit)
{
	printf("%s: %s\t%.4g\t%s\n", of, name, value, unit);
}

/* One size of huge pages; as many bytes as `small` has are continued piece by piece, by turns with it. */
static void huge(const char *of, unsigned flags, size_t page, size_t pages, int small)
{
	size_t size = page * pages;
	int fd = filled(MFD_HUGETLB | flags, size, page);
	char *at;
	double in_pieces, together, start;
	double call[ROUNDS], against_small[ROUNDS], against_whole[ROUNDS];

	for (int i = 0; i < ROUNDS; i++) {
		double base = per_call(mapped(small, SMALL), SMALL, SMALL, PIECE);
		double whole = per_call(splittable(fd, size), size, size, page);

		call[i] = per_call(splittable(fd, size), size, SMALL, PIECE);
		against_small[i] = base / call[i];
		against_whole[i] = call[i] * (page / PIECE) / whole;
	}
	row(of, "CONTINUE of 4 KiB", 1e-3 / median(call), "1000/s");
	row(of, "calls in the time of one on shmem", median(against_small), "");
	row(of, "time of all pieces, against one whole", median(against_whole), "x");

	/* Tables: one page of it in pieces, then put together. */
	at = splittable(fd, page);
	serve(at, page);
	for (size_t k = 0; k < page; k += PIECE)
		proceed(at + k, PIECE);
	in_pieces = tables();
	start = now();
	if (madvise(at, page, ADVICE_COLLAPSE))
		give_up("MADV_COLLAPSE");
	together = now() - start;
	in_pieces -= tables();
	row(of, "COLLAPSE of a page in pieces", together * 1e3, "ms");
	row(of, "page tables that it had more before", in_pieces, "KiB");
	row(of, "of the memory they map", 100 * 1024 * in_pieces / page, "%");
	munmap(at, page);
	close(fd);
}

int main(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM,
	};
	int small;

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		give_up("no userfaultfd with minor faults");
	small = filled(0, SMALL, PIECE);
	huge("2 MiB", MFD_HUGE_2MB, 2 << 20, 8, small);
	huge("1 GiB", MFD_HUGE_1GB, 1 << 30, 1, small);
	return 0;
}
