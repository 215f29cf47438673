/* A kernel that reports and goes on, for a test of the pool: run as root in the guest.
 *
 * A real report: one write to a file holds its lock while the page it reads from waits for a
 * userfault, a second write waits for that lock. The kernel says of the second that it hangs, and
 * says so again at each look. After some looks both are let go.
 *
 * And one made up, twice: the text of a warning, through the kernel's log. Built with -DNOISE, lines of
 * somebody else stand in all that is reported.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How often the kernel may say it, and for how long it is waited for, in seconds. */
#define REPORTS "3"
#define PATIENCE 20

static const char *const WARNING[] = {
	"------------[ cut here ]------------",
	"WARNING: CPU: 0 PID: 77 at mm/hugetlb.c:5551 hugetlb_wp+0x1a2/0x7c0",
	"Modules linked in:",
	"CPU: 0 PID: 77 Comm: reports Not tainted 6.1.0 #1",
	"RIP: 0010:hugetlb_wp+0x1a2/0x7c0",
	"Call Trace:",
	" <TASK>",
	" hugetlb_fault+0x5b1/0xcd0",
	" handle_mm_fault+0x2b1/0x2d0",
	" do_user_addr_fault+0x1c1/0x610",
	" </TASK>",
	"---[ end trace 0000000000000000 ]---",
};

static int file;
static volatile int over;

static void say(const char *line)
{
	char text[200];
	int log = open("/dev/kmsg", O_WRONLY), n = snprintf(text, sizeof(text), "<4>%s", line);

	if (log < 0 || write(log, text, n) != n)
		exit(10);
	close(log);
}

static void put(const char *name, const char *value)
{
	char path[100];
	int knob;

	snprintf(path, sizeof(path), "/proc/sys/kernel/%s", name);
	knob = open(path, O_WRONLY);
	if (knob < 0 || write(knob, value, strlen(value)) < 0)
		exit(11);
	close(knob);
}

/* Reports the kernel may still make. */
static int left(void)
{
	char text[20] = "";
	int knob = open("/proc/sys/kernel/hung_task_warnings", O_RDONLY);

	if (knob < 0 || read(knob, text, sizeof(text) - 1) < 1)
		exit(12);
	close(knob);
	return atoi(text);
}

#ifdef NOISE
static void *chatter(void *unused)
{
	/* Some in every report, and all of them less than an excerpt of the console holds. */
	struct timespec pause = {0, 10000000};

	while (!over) {
		say("another: line of somebody else");
		nanosleep(&pause, NULL);
	}
	return unused;
}
#endif

static void *writer(void *from)
{
	if (pwrite(file, from, 8, 0) < 0)
		over = 1;
	return NULL;
}

int main(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register all = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	pthread_t first, second;
	static char other[8];
	int uffd, looks, line;
	char *page;

	/* Or else no more than some lines of it are let through. */
	put("printk_devkmsg", "on\n");
#ifdef NOISE
	pthread_t talker;
	pthread_create(&talker, NULL, chatter, NULL);
#endif
	for (looks = 0; looks < 2; looks++)
		for (line = 0; line < (int)(sizeof(WARNING) / sizeof(*WARNING)); line++)
			say(WARNING[line]);
	put("hung_task_warnings", REPORTS);
	put("hung_task_panic", "0");
	put("hung_task_check_interval_secs", "1");
	put("hung_task_timeout_secs", "1");
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	all.range.start = (unsigned long)page;
	all.range.len = 4096;
	file = open("/tmp/locked", O_RDWR | O_CREAT, 0600);
	if (file < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &all))
		return 13;
	pthread_create(&first, NULL, writer, page);
	usleep(100000);
	pthread_create(&second, NULL, writer, other);
	for (looks = 0; left() > 0 && looks < PATIENCE * 20; looks++)
		usleep(50000);
	looks = left();
	/* Counted before it is printed: let go now, it would be reported as it runs. */
	sleep(1);
	over = 1;
	close(uffd);
	pthread_join(first, NULL);
	pthread_join(second, NULL);
	put("hung_task_warnings", "10");
	put("hung_task_timeout_secs", "120");
	return looks > 0 ? 14 : 0;
}
