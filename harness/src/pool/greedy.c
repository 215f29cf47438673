/* A guest that takes all it can, for a test of the pool: run as root in the guest. It writes all free
 * memory again and again on every CPU, floods the console, and floods the link with whole frames, whose
 * bytes FRAME has. It ends when it is killed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

/* Left to the kernel, or the guest kills what takes too much. */
#define SPARED (64UL << 20)

static const unsigned char frame[] = {FRAME};
static char *memory;
static size_t length;

static void *dirty(void *unused)
{
	for (;;)
		for (size_t at = 0; at < length; at += 4096)
			memory[at]++;
	return unused;
}

static void *flood_console(void *unused)
{
	static char text[64 << 10];
	int console = open("/dev/console", O_WRONLY);

	memset(text, 'x', sizeof(text));
	while (write(console, text, sizeof(text)) > 0)
		;
	return unused;
}

/* The agent's end of the link: it is process 1, and the port is opened once. */
static int link_of_agent(void)
{
	int agent = syscall(SYS_pidfd_open, 1, 0);
	DIR *all = opendir("/proc/1/fd");
	struct dirent *one;
	char name[300], to[300];

	while (all && (one = readdir(all))) {
		int number;
		ssize_t n;

		snprintf(name, sizeof(name), "/proc/1/fd/%s", one->d_name);
		n = readlink(name, to, sizeof(to) - 1);
		if (n < 0 || sscanf(one->d_name, "%d", &number) != 1)
			continue;
		to[n] = 0;
		if (strstr(to, "vport"))
			return syscall(SYS_pidfd_getfd, agent, number, 0);
	}
	return -1;
}

int main(void)
{
	struct sysinfo info;
	pthread_t thread;
	int port = link_of_agent();

	if (port < 0 || sysinfo(&info))
		return 10;
	length = info.freeram * info.mem_unit - SPARED;
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 11;
	for (int cpu = 0; cpu < get_nprocs(); cpu++)
		pthread_create(&thread, NULL, dirty, NULL);
	pthread_create(&thread, NULL, flood_console, NULL);
	for (size_t at = 0;;) {
		ssize_t n = write(port, frame + at, sizeof(frame) - at);

		if (n > 0)
			at = (at + n) % sizeof(frame);
	}
}
