//@ seen: <errno.h> <stdio.h> <stdlib.h> <string.h> <unistd.h> <stdarg.h>
enum how { NOT_RUN, RETURNED, FAILED, SIGNALLED, WAITED };

/* What a line of the program gave. */
struct seen {
	enum how how;
	long ret;		/* RETURNED: the result; addresses as offsets */
	int err;		/* FAILED: errno */
	int signo, code, lsb;	/* SIGNALLED */
	unsigned long addr;
	int beside;		/* si_code of a SIGBUS beside the return */
	long out[2];		/* what else the check needs */
	unsigned long word;	/* last word loaded */
};
//@ shared: seen
@SHARED@
//@ say: shared
/* Adds a line to what is told of this round. */
__attribute__((format(printf, 1, 2))) static void say(const char *text, ...)
{
	size_t used = strlen(s->note);
	va_list args;

	va_start(args, text);
	vsnprintf(s->note + used, sizeof(s->note) - used, text, args);
	va_end(args);
	used = strlen(s->note);
	snprintf(s->note + used, sizeof(s->note) - used, "\n");
}

//@ cannot: say
/* This machine or kernel cannot show it: ends the round. */
#define cannot(...) do { say(__VA_ARGS__); _exit(CANNOT); } while (0)

//@ objects: shared
@OBJECTS@
//@ pin_cpu: <sched.h> <unistd.h>
/* Keeps the calling thread on one CPU, counted round. */
static void pin_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu % sysconf(_SC_NPROCESSORS_ONLN), &set);
	sched_setaffinity(0, sizeof(set), &set);
}

//@ line: shared
static __thread struct seen *l;	/* of the line that runs */

static void line(int number)
{
	l = &s->seen[number];
	s->now = number;
	l->how = NOT_RUN;
}

//@ done: line
/* Notes what a call gave. */
static long done(long ret)
{
	l->how = ret == -1 ? FAILED : RETURNED;
	l->err = ret == -1 ? errno : 0;
	l->ret = ret;
	return ret;
}

//@ made: done
/* The same for a call that makes a descriptor: success is 0. */
static int made(int fd)
{
	done(fd == -1 ? -1 : 0);
	return fd;
}

//@ placed: done
/* The same for a call that gives an address. */
static void placed(void *got, unsigned long asked)
{
	done(got == (void *)-1 ? -1 : 0);
	if (l->how == RETURNED)
		l->ret = (unsigned long)got - asked;
}

//@ as_found: cannot line
/* A line ahead of the checked one must end as it did where the bug was seen. */
static void as_found(enum how how)
{
	static const char *const words[] = {
		"was not run", "succeeded", "failed", "got a signal", "waited for ever"
	};

	if (l->how == how)
		return;
	if (l->how == FAILED)
		say("line %d: %s", (int)(l - s->seen), strerror(l->err));
	cannot("line %d %s here; where the bug was seen it %s", (int)(l - s->seen),
	       words[l->how], words[how]);
}

//@ keep: line
@KEEP@
//@ handler_type: cannot <pthread.h>
@HANDLERS@
//@ settle: handler_type <poll.h> <time.h>
@SETTLE@
//@ fault: line <signal.h> <setjmp.h>
static __thread sigjmp_buf escape;
static __thread volatile sig_atomic_t guarded;

/* A fault of a guarded load or store ends it; memory failure may send SIGBUS beside a return. */
static void on_fault(int signo, siginfo_t *info, void *context)
{
	(void)context;
	if (guarded) {
		guarded = 0;
		l->how = SIGNALLED;
		l->signo = signo;
		l->code = info->si_code;
		l->addr = (unsigned long)info->si_addr;
		l->lsb = info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO ?
			info->si_addr_lsb : 0;
		siglongjmp(escape, 1);
	}
	if (l && signo == SIGBUS &&
	    (info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO)) {
		l->beside = info->si_code;
		return;
	}
	signal(signo, SIG_DFL);
}

static void catch_faults(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_NODEFER };

	action.sa_sigaction = on_fault;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

//@ limit: fault objects <signal.h> <time.h> <unistd.h> <poll.h> <sys/syscall.h>
@ENDWAITS@
static __thread volatile sig_atomic_t late, forced;
static __thread timer_t clock_of_line;

/* Breaks off what waits: first by the signal itself, then by taking away what it waits for. */
static void on_late(int signo)
{
	(void)signo;
	late++;
	if (late == 3 || late == 6)
		forced |= end_waits(late == 6);
	if (guarded) {
		guarded = 0;
		l->how = WAITED;
		siglongjmp(escape, 1);
	}
}

static void limit_begin(void)
{
	struct sigaction action = { .sa_handler = on_late, .sa_flags = SA_NODEFER };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID };
	struct itimerspec when = {
		.it_value = { .tv_sec = 2 }, .it_interval = { .tv_nsec = 50000000 }
	};

	sigaction(SIGRTMIN + 2, &action, NULL);
	late = forced = 0;
	event.sigev_signo = SIGRTMIN + 2;
	event._sigev_un._tid = syscall(SYS_gettid);
	timer_create(CLOCK_MONOTONIC, &event, &clock_of_line);
	timer_settime(clock_of_line, 0, &when, NULL);
}

static void limit_end(void)
{
	timer_delete(clock_of_line);
	if (forced || (late && l->how == FAILED && l->err == EINTR))
		l->how = WAITED;
}

//@ serial: line
/* Of the tags that the line leaves. */
static unsigned int serial(void)
{
	return l - s->seen + 1;
}

//@ tags:
/*
 * What a store leaves in a page: who wrote it (its line + 1) and the page's number, in the words
 * at 0 and 4088, so that each read tells which store it sees.
 */
#define TAG(serial, page) ((unsigned long)(serial) << 32 | (unsigned int)(page))
#define WORD(i) ((i) ? 4088UL : 0UL)

//@ meet: cannot pin_cpu <pthread.h> <sched.h>
/* Threads of a block start together. */
static int met;
static pthread_t thread[3];

static void meet(int count)
{
	__atomic_add_fetch(&met, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&met, __ATOMIC_SEQ_CST) < count)
		sched_yield();
}

//@ load: fault tags done
/* Loads the two words of each page of the range. */
static void load(unsigned long at, unsigned long len)
{
	unsigned long page, word;
	int i;

	for (page = at & ~4095UL; page < at + len; page += 4096) {
		for (i = 0; i < 2; i++) {
			word = page + WORD(i);
			if (word < at || word + 8 > at + len)
				continue;
			if (sigsetjmp(escape, 0))
				return;
			guarded = 1;
			l->word = *(volatile unsigned long *)word;
			guarded = 0;
			keep((page - (at & ~4095UL)) / 4096, i, l->word); /*@keep*/
		}
	}
	done(0);
}

//@ store: fault tags done serial
/* Stores the tag of this line into each page of the range; numbers count from `base`. */
static void store(unsigned long base, unsigned long at, unsigned long len)
{
	unsigned long page, word;
	int i;

	for (page = at & ~4095UL; page < at + len; page += 4096) {
		for (i = 0; i < 2; i++) {
			word = page + WORD(i);
			if (word < at || word + 8 > at + len)
				continue;
			if (sigsetjmp(escape, 0))
				return;
			guarded = 1;
			*(volatile unsigned long *)word =
				TAG(serial(), (page - base) / 4096);
			guarded = 0;
		}
	}
	done(0);
}

//@ room: cannot <sys/mman.h>
/* A zeroed buffer for bytes of an object from `off` on, as far into its page as they are. */
static char *room(unsigned long off, unsigned long len)
{
	unsigned long all = (off % 4096 + len + 8191) & ~4095UL;
	char *at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		cannot("no memory for a buffer of %lu bytes", len);
	madvise(at, all, MADV_NOHUGEPAGE);
	return at + off % 4096;
}

//@ free_room: <sys/mman.h>
static void free_room(char *buffer, unsigned long len)
{
	unsigned long start = (unsigned long)buffer & ~4095UL;

	munmap((void *)start, ((unsigned long)buffer % 4096 + len + 8191) & ~4095UL);
}

//@ put_tags: tags
/* Puts tags into a buffer for bytes of an object from `off` on. */
static void put_tags(char *buffer, unsigned long off, unsigned long len, unsigned int serial)
{
	unsigned long page, word;
	int i;

	for (page = off & ~4095UL; page < off + len; page += 4096) {
		for (i = 0; i < 2; i++) {
			word = page + WORD(i);
			if (word >= off && word + 8 <= off + len)
				*(unsigned long *)(buffer + (word - off)) = TAG(serial, page / 4096);
		}
	}
}

//@ keep_buffer: keep tags
/* The words in what a call brought, for the check. */
static void keep_buffer(const char *buffer, unsigned long off, long got)
{
	unsigned long page, word, end = off + (got > 0 ? got : 0);
	int i;

	for (page = off & ~4095UL; page < end; page += 4096) {
		for (i = 0; i < 2; i++) {
			word = page + WORD(i);
			if (word >= off && word + 8 <= end)
				keep((page - (off & ~4095UL)) / 4096, i,
				     *(const unsigned long *)(buffer + (word - off)));
		}
	}
}

//@ file_read: done room free_room
static void file_read(int fd, unsigned long off, unsigned long len)
{
	char *buffer = room(off, len);

	done(pread(fd, buffer, len, off));
	keep_buffer(buffer, off, l->ret); /*@keep*/
	free_room(buffer, len);
}

//@ file_write: done room free_room put_tags serial
static void file_write(int fd, unsigned long off, unsigned long len)
{
	char *buffer = room(off, len);

	put_tags(buffer, off, len, serial());
	done(pwrite(fd, buffer, len, off));
	free_room(buffer, len);
}

//@ file_status: done <sys/stat.h>
static void file_status(int fd)
{
	struct stat stat;

	if (done(fstat(fd, &stat)) == 0) {
		l->out[0] = stat.st_size;
		l->out[1] = stat.st_blocks;
	}
}

//@ hugetlbfs_file: <sys/mount.h> <fcntl.h> <stdio.h> <stdlib.h> <unistd.h> <errno.h>
/* A new unlinked file on a mount of its own. */
static int hugetlbfs_file(const char *option)
{
	char dir[] = "/tmp/hugetlbfs.XXXXXX", name[sizeof(dir) + 8];
	int fd, err;

	if (!mkdtemp(dir))
		return -1;
	if (mount("none", dir, "hugetlbfs", 0, option) == -1) {
		err = errno;
		rmdir(dir);
		errno = err;
		return -1;
	}
	snprintf(name, sizeof(name), "%s/file", dir);
	fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	err = errno;
	unlink(name);
	umount2(dir, MNT_DETACH);
	rmdir(dir);
	errno = err;
	return fd;
}

//@ uffd_open: <sys/ioctl.h> <sys/syscall.h> <fcntl.h> <unistd.h> <errno.h> <linux/userfaultfd.h> done
static int uffd_open(unsigned long features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int err, fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd == -1)
		return -1;
	if (ioctl(fd, UFFDIO_API, &api) == -1) {
		err = errno;
		close(fd);
		errno = err;
		return -1;
	}
	l->out[0] = api.features;
	return fd;
}

//@ uffd_range: <sys/ioctl.h> <linux/userfaultfd.h> done
/* UFFDIO_UNREGISTER, UFFDIO_WAKE. */
static void uffd_range(int uffd, unsigned long request, unsigned long at, unsigned long len)
{
	struct uffdio_range range = { at, len };

	done(ioctl(uffd, request, &range));
}

//@ fill_type:
/* struct uffdio_register, _zeropage, _continue and _poison: a range, a mode, one output field. */
struct fill {
	unsigned long start, len, mode;
	long out;
};

//@ untouched:
/* In an output field before the call. */
#define UNTOUCHED 0x5e5e5e5e5e5eL

//@ uffd_register: <sys/ioctl.h> <linux/userfaultfd.h> done fill_type untouched
static void uffd_register(int uffd, unsigned long at, unsigned long len, unsigned long mode)
{
	struct fill arg = { at, len, mode, UNTOUCHED };

	if (done(ioctl(uffd, UFFDIO_REGISTER, &arg)) == 0)
		l->ret = arg.out;
	l->out[0] = arg.out;
}

//@ uffd_fill: <sys/ioctl.h> <linux/userfaultfd.h> done fill_type untouched
/* UFFDIO_CONTINUE, UFFDIO_ZEROPAGE, UFFDIO_POISON. */
static void uffd_fill(int uffd, unsigned long request, unsigned long at, unsigned long len,
		      unsigned long mode)
{
	struct fill arg = { at, len, mode, UNTOUCHED };

	done(ioctl(uffd, request, &arg));
	l->out[0] = arg.out;
}

//@ uffd_protect: <sys/ioctl.h> <linux/userfaultfd.h> done
static void uffd_protect(int uffd, unsigned long at, unsigned long len, unsigned long mode)
{
	struct uffdio_writeprotect arg = { .range = { at, len }, .mode = mode };

	done(ioctl(uffd, UFFDIO_WRITEPROTECT, &arg));
}

//@ uffd_copy: <sys/ioctl.h> <linux/userfaultfd.h> done room free_room put_tags untouched serial
/* UFFDIO_COPY of tagged pages; their numbers count from `base`. */
static void uffd_copy(int uffd, unsigned long base, unsigned long at, unsigned long len,
		      unsigned long mode)
{
	char *buffer = room(at - base, len);
	struct uffdio_copy arg = {
		.dst = at, .src = (unsigned long)buffer, .len = len, .mode = mode, .copy = UNTOUCHED
	};

	put_tags(buffer, at - base, len, serial());
	done(ioctl(uffd, UFFDIO_COPY, &arg));
	l->out[0] = arg.copy;
	free_room(buffer, len);
}

//@ page_at:
@PAGEAT@
//@ events: shared
/* Keeps a message of a userfaultfd for the check. */
static void note_event(int uffd, unsigned char event, unsigned char flags, unsigned long at)
{
	int i = __atomic_fetch_add(&s->event_count, 1, __ATOMIC_SEQ_CST);

	if (i >= EVENTS)
		return;
	s->events[i].line = s->now;
	s->events[i].uffd = uffd;
	s->events[i].event = event;
	s->events[i].flags = flags;
	s->events[i].at = at;
}

//@ handler: handler_type page_at room put_tags fill_type <pthread.h> <poll.h> <sys/eventfd.h> <sys/ioctl.h> <unistd.h> <errno.h> <linux/userfaultfd.h>
static int ask_kernel(struct handler *h, unsigned long request, void *arg)
{
	return ioctl(h->uffd, request, arg) == -1 ? errno : 0;
}

static int answer_copy(struct handler *h, unsigned long at, unsigned long size, int zeroes)
{
	struct uffdio_copy arg = { .dst = at, .src = (unsigned long)h->buffer, .len = size };

	if (zeroes)
		memset(h->buffer, 0, size);
	else
		put_tags(h->buffer, (at - R_BASE) % R_STRIDE, size, 0x80000000U + h->number);
	return ask_kernel(h, UFFDIO_COPY, &arg);
}

/* Answers a fault with one page of this size; gives the errno. */
static int answer_sized(struct handler *h, unsigned long at, unsigned int flags, unsigned long size)
{
	struct fill fill = { at & ~(size - 1), size, 0, 0 };
	int err;

	if (flags & UFFD_PAGEFAULT_FLAG_WP) {
		struct uffdio_writeprotect wp = { .range = { at & ~(size - 1), size } };

		return ask_kernel(h, UFFDIO_WRITEPROTECT, &wp);
	}
	if (flags & UFFD_PAGEFAULT_FLAG_MINOR)
		return ask_kernel(h, UFFDIO_CONTINUE, &fill);
	switch (h->policy) {
	case ANSWER_COPY:
		return answer_copy(h, at & ~(size - 1), size, 0);
	case ANSWER_ZERO:
		err = ask_kernel(h, UFFDIO_ZEROPAGE, &fill);
		return err == EINVAL ? answer_copy(h, at & ~(size - 1), size, 1) : err;
	default:
		return ask_kernel(h, UFFDIO_POISON, &fill);
	}
}

static int answer(struct handler *h, unsigned long at, unsigned int flags)
{
	static const unsigned long sizes[] = { 4096, 2UL << 20, 1UL << 30 };
	struct uffdio_range whole = { at & ~4095UL, 4096 };
	int i, piece, err = answer_sized(h, at, flags, page_at(at));

	for (i = 0; i < 3 && err == EINVAL; i++) {
		if (sizes[i] == page_at(at) || sizes[i] > BUFFER)
			continue;
		err = answer_sized(h, at, flags, sizes[i]);
		if (err == ENOENT)
			err = EINVAL;
	}
	if (err == EEXIST && (flags & UFFD_PAGEFAULT_FLAG_MINOR)) {
		piece = answer_sized(h, at, flags, 4096);
		err = piece == EINVAL ? err : piece;
	}
	if (err == EEXIST)
		ioctl(h->uffd, UFFDIO_WAKE, &whole);
	return err;
}

static void take(struct handler *h, const struct uffd_msg *msg)
{
	int i;

	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		note_event(h->number, msg->event, msg->arg.pagefault.flags, msg->arg.pagefault.address); /*@events*/
		for (i = 0; i < LATE_MAX; i++) {
			if (h->left[i])
				continue;
			h->left[i] = 200;
			h->at[i] = msg->arg.pagefault.address;
			h->flags[i] = msg->arg.pagefault.flags;
			break;
		}
		break;
	case UFFD_EVENT_FORK:
		note_event(h->number, msg->event, 0, 0); /*@events*/
		break;
	case UFFD_EVENT_REMAP:
		note_event(h->number, msg->event, 0, msg->arg.remap.from); /*@events*/
		break;
	default:
		note_event(h->number, msg->event, 0, msg->arg.remove.start); /*@events*/
		break;
	}
}

/* Answers what waits; EAGAIN is tried again once other messages were read. */
static int answer_all(struct handler *h)
{
	int i, open = 0;

	for (i = 0; i < LATE_MAX; i++) {
		if (!h->left[i])
			continue;
		h->left[i]--;
		if (answer(h, h->at[i], h->flags[i]) != EAGAIN)
			h->left[i] = 0;
		open |= h->left[i];
	}
	return open;
}

static void *handle(void *arg)
{
	struct handler *h = arg;
	struct uffd_msg msg;
	int open = 0;

	for (;;) {
		struct pollfd fds[2] = { { h->uffd, POLLIN, 0 }, { h->stop, POLLIN, 0 } };

		poll(fds, 2, open ? 1 : -1);
		if (fds[1].revents || (fds[0].revents & POLLERR))
			return NULL;
		__atomic_store_n(&h->busy, 1, __ATOMIC_SEQ_CST);
		while (read(h->uffd, &msg, sizeof(msg)) == sizeof(msg)) {
			take(h, &msg);
			open = answer_all(h);
		}
		open = answer_all(h);
		__atomic_store_n(&h->busy, open, __ATOMIC_SEQ_CST);
	}
}

/* Starts the thread that answers the faults of a userfaultfd. */
static void start_handler(struct handler *h, int number, int uffd, enum policy policy)
{
	if (uffd == -1)
		return;
	h->number = number;
	h->uffd = uffd;
	h->policy = policy;
	h->stop = eventfd(0, EFD_CLOEXEC);
	h->buffer = room(0, BUFFER);
	if (pthread_create(&h->thread, NULL, handle, h))
		cannot("no thread for the handler of u%d", number);
}

//@ stop_handler: handler
static void stop_handler(struct handler *h)
{
	unsigned long one = 1;

	if (!h->buffer)
		return;
	if (write(h->stop, &one, sizeof(one)) == sizeof(one))
		pthread_join(h->thread, NULL);
	h->uffd = -1;
	h->buffer = NULL;
}

//@ processes: done objects <sched.h> <signal.h> <poll.h> <sys/socket.h> <sys/prctl.h> <sys/wait.h> <sys/syscall.h> <unistd.h>
static void run_line(int number);

/* The life of a forked process: it runs the lines it is told. */
static void serve(int sock)
{
	int number;
	ssize_t got;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		got = read(sock, &number, sizeof(number));
		if (got == -1 && errno == EINTR)
			continue;
		if (got != sizeof(number) || number < 0)
			_exit(0);
		run_line(number);
		if (write(sock, &number, sizeof(number)) != sizeof(number))
			_exit(0);
	}
}

/* fork with a table of descriptors that both share; p0 is every process's parent. */
static void fork_process(struct process *p, unsigned long more)
{
	int pair[2];
	long pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == -1)
		pid = -1;
	else
		pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD | more, 0, 0, 0, 0);
	if (pid == 0)
		serve(pair[1]);
	done(pid == -1 ? -1 : 0);
	p->pid = pid == -1 ? 0 : pid;
	p->sock = pair[0];
}

//@ in_process: processes
/* Has another process run a line. */
static void in_process(struct process *p, int number)
{
	int status, answer, waited = 0;

	line(number);
	if (!p->pid || write(p->sock, &number, sizeof(number)) != sizeof(number))
		return;
	for (;;) {
		struct pollfd fd = { p->sock, POLLIN, 0 };

		if (poll(&fd, 1, 50) == 1 && read(p->sock, &answer, sizeof(answer)) > 0)
			return;
		if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
			l->how = SIGNALLED;
			l->signo = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
			p->pid = 0;
			return;
		}
		waited += 50;
		if (LIMITED && waited > 5000) {
			l->how = WAITED;
			return;
		}
	}
}

//@ end_process: processes
/* The `exit` op. */
static void end_process(struct process *p)
{
	int end = -1;

	if (p->pid && write(p->sock, &end, sizeof(end)) == sizeof(end))
		waitpid(p->pid, NULL, 0);
	p->pid = 0;
	done(0);
}

//@ move_each: done <stdlib.h> <sys/syscall.h> <unistd.h>
/* move_pages of every `step` of the range; a negative node only asks where they are. */
static void move_each(unsigned long at, unsigned long len, unsigned long step, int node, int flags)
{
	unsigned long i, count = (len + step - 1) / step;
	void **pages = calloc(count + 1, sizeof(*pages));
	int *nodes = calloc(count + 1, sizeof(*nodes));
	int *status = calloc(count + 1, sizeof(*status));

	if (!pages || !nodes || !status)
		abort();
	for (i = 0; i < count; i++) {
		pages[i] = (void *)(at + i * step);
		nodes[i] = node;
		status[i] = 0x5e5e5e5e;
	}
	done(syscall(SYS_move_pages, 0, count, pages, node < 0 ? NULL : nodes, status, flags));
	for (i = 0; i < count; i++) /*@keep*/
		keep(i, 0, status[i]); /*@keep*/
	free(pages);
	free(nodes);
	free(status);
}

//@ vm_read: done room free_room <sys/uio.h>
/* process_vm_readv. */
static void vm_read(pid_t pid, unsigned long base, unsigned long at, unsigned long len)
{
	char *buffer = room(at - base, len);
	struct iovec local = { buffer, len }, remote = { (void *)at, len };

	done(process_vm_readv(pid, &local, 1, &remote, 1, 0));
	keep_buffer(buffer, at - base, l->ret); /*@keep*/
	free_room(buffer, len);
}

//@ splice: cannot done room free_room <fcntl.h> <sys/uio.h> <unistd.h>
/* vmsplice into a pipe, read back chunk by chunk. */
static void splice_range(unsigned long base, unsigned long at, unsigned long len)
{
	char *buffer = room(at - base, len);
	unsigned long sent = 0, taken;
	int ends[2];
	ssize_t got = 0;

	if (pipe(ends) == -1 || fcntl(ends[1], F_SETPIPE_SZ, 256 * 4096) < 256 * 4096)
		cannot("no pipe of 256 pages");
	do {
		struct iovec part = { (void *)(at + sent), len - sent };

		if (part.iov_len > 128 * 4096)
			part.iov_len = 128 * 4096;
		got = vmsplice(ends[1], &part, 1, 0);
		for (taken = 0; got > 0 && taken < (unsigned long)got;) {
			ssize_t n = read(ends[0], buffer + sent + taken, got - taken);

			if (n <= 0)
				break;
			taken += n;
		}
		sent += got > 0 ? got : 0;
	} while (got > 0 && sent < len);
	done(got == -1 && sent == 0 ? -1 : (long)sent);
	keep_buffer(buffer, at - base, l->ret); /*@keep*/
	close(ends[0]);
	close(ends[1]);
	free_room(buffer, len);
}

//@ direct: cannot done room free_room <fcntl.h> <unistd.h>
static int open_ram_disk(void)
{
	int fd = open("/dev/ram0", O_RDWR | O_DIRECT | O_CLOEXEC);

	if (fd == -1)
		cannot("there is no /dev/ram0: modprobe brd");
	return fd;
}

//@ direct_out: direct
/* An O_DIRECT write of the range to a RAM disk, and what arrived there. */
static void direct_out(unsigned long base, unsigned long at, unsigned long len)
{
	char *buffer = room(0, len + 4096);
	int fd = open_ram_disk();

	done(pwrite(fd, (void *)at, len, 0));
	if (l->ret > 0 && pread(fd, buffer, (l->ret + 4095) & ~4095L, 0) == -1)
		cannot("/dev/ram0 cannot be read");
	keep_buffer(buffer, at - base, l->ret); /*@keep*/
	(void)base;
	close(fd);
	free_room(buffer, len + 4096);
}

//@ direct_in: direct put_tags serial
/* An O_DIRECT read of tagged pages from a RAM disk into the range. */
static void direct_in(unsigned long base, unsigned long at, unsigned long len)
{
	unsigned long whole = (len + 4095) & ~4095UL;
	char *buffer = room(0, whole);
	int fd = open_ram_disk();

	if ((at - base) % 8 == 0)
		put_tags(buffer, at - base, whole, serial());
	if (pwrite(fd, buffer, whole, 0) != (ssize_t)whole)
		cannot("/dev/ram0 is too small");
	done(pread(fd, (void *)at, len, 0));
	close(fd);
	free_room(buffer, whole);
}

//@ pin_range: cannot done <sys/syscall.h> <sys/uio.h> <unistd.h> <linux/io_uring.h>
/* A long-term pin: the range as a registered buffer of a ring. Gives the ring, or -1. */
static int pin_range(unsigned long at, unsigned long len)
{
	struct io_uring_params params = { 0 };
	struct iovec range = { (void *)at, len };
	int ring = syscall(SYS_io_uring_setup, 1, &params);

	if (ring == -1)
		cannot("there is no io_uring: %s", strerror(errno));
	if (done(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &range, 1)) == -1) {
		close(ring);
		return -1;
	}
	return ring;
}

//@ unpin: done <sys/syscall.h> <unistd.h> <linux/io_uring.h>
static void unpin(int ring)
{
	done(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0));
	close(ring);
}

//@ gup: cannot done <fcntl.h> <sys/ioctl.h> <unistd.h>
/* One pass of the kernel's mm/gup_test.c over the range, page by page. */
static void gup(unsigned long at, unsigned long len, unsigned int gup_flags, int longterm)
{
	struct {
		unsigned long get_usec, put_usec, addr, size;
		unsigned int pages_per_call, gup_flags, test_flags, which[8];
	} test = {
		.addr = at & ~4095UL, .size = (len + 4095) & ~4095UL,
		.pages_per_call = 1, .gup_flags = gup_flags
	};
	int fd = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);

	if (fd == -1)
		cannot("there is no /sys/kernel/debug/gup_test (CONFIG_GUP_TEST, debugfs mounted)");
	if (done(ioctl(fd, _IOC(_IOC_READ | _IOC_WRITE, 'g', longterm ? 3 : 4, sizeof(test)),
		       &test)) == 0)
		l->ret = test.size;
	close(fd);
}

//@ put_file: <fcntl.h> <string.h> <unistd.h> <errno.h>
/* Writes a short text; 0, or -1 and errno. */
static int put_file(const char *path, const char *text)
{
	int err, fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t put;

	if (fd == -1)
		return -1;
	put = write(fd, text, strlen(text));
	err = errno;
	close(fd);
	errno = err;
	return put == -1 ? -1 : 0;
}

//@ fail_nth: put_file <stdio.h>
/* The n-th allocation of the next call fails; 0 takes that back. */
static int fail_nth(int nth)
{
	char text[16];
	int err = errno, ret;

	snprintf(text, sizeof(text), "%d", nth);
	ret = put_file("/proc/thread-self/fail-nth", text);
	if (nth == 0)
		errno = err;
	return ret;
}

//@ entry: <fcntl.h> <stdio.h> <unistd.h> cannot
/* The page-table entry of an address, as /proc/PID/pagemap shows it. */
static unsigned long entry(pid_t pid, unsigned long at)
{
	char path[64];
	unsigned long value = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1 || pread(fd, &value, sizeof(value), at / 4096 * 8) != sizeof(value))
		cannot("%s cannot be read: %s", path, strerror(errno));
	close(fd);
	return value;
}

//@ pfn: entry
#define PRESENT (1UL << 63)
#define PFN(entry) ((entry) & ((1UL << 55) - 1))

//@ poison: pfn done <sys/mman.h>
/* MADV_HWPOISON; the frame is noted, so that the poison can be taken off again. */
static void poison(unsigned long at, unsigned long len)
{
	unsigned long e = len ? entry(getpid(), at) : 0;

	if ((e & PRESENT) && s->poisoned_count < POISONED) {
		s->poisoned[s->poisoned_count].at = at & ~4095UL;
		s->poisoned[s->poisoned_count++].pfn = PFN(e);
	}
	done(madvise((void *)at, len, MADV_HWPOISON));
}

//@ unpoison_pfn: put_file <stdio.h>
static int unpoison_pfn(unsigned long pfn)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu\n", pfn);
	return put_file("/sys/kernel/debug/hwpoison/unpoison-pfn", text);
}

//@ unpoison: unpoison_pfn done
/* Takes the poison off the frame that was poisoned at this place. */
static void unpoison(unsigned long at)
{
	int i;

	for (i = s->poisoned_count - 1; i >= 0; i--)
		if (s->poisoned[i].at == (at & ~4095UL))
			break;
	if (i >= 0)
		done(unpoison_pfn(s->poisoned[i].pfn));
}

//@ unpoison_all: unpoison_pfn shared
/* As far as the kernel lets us; of a huge page it may know the first frame only. */
static void unpoison_all(void)
{
	int i;

	for (i = 0; i < s->poisoned_count; i++)
		if (unpoison_pfn(s->poisoned[i].pfn) == -1)
			unpoison_pfn(s->poisoned[i].pfn & ~511UL);
}

//@ kpage: <fcntl.h> <unistd.h> cannot
/* A word of /proc/kpagecount or /proc/kpageflags. */
static unsigned long kpage(const char *path, unsigned long pfn)
{
	unsigned long value = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd == -1 || pread(fd, &value, sizeof(value), pfn * 8) != sizeof(value))
		cannot("%s cannot be read: %s", path, strerror(errno));
	close(fd);
	return value;
}

//@ smaps: <stdio.h> <string.h> cannot
/*
 * Walks /proc/PID/smaps. Of the mappings that begin in [from, to), or hold `from` where `to` is 0:
 * the sum of the kB behind `label`; for the label "VmFlags" whether the word `flag` stands there;
 * for no label the permissions (r 1, w 2, x 4, shared 8). -1 if there is no such mapping.
 */
static long smaps(pid_t pid, unsigned long from, unsigned long to, const char *label,
		  const char *flag)
{
	char path[64], text[8192], perms[8];
	unsigned long start, end, kb;
	int inside = 0;
	long sum = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	file = fopen(path, "r");
	if (!file)
		cannot("%s cannot be read: %s", path, strerror(errno));
	while (fgets(text, sizeof(text), file)) {
		if (sscanf(text, "%lx-%lx %7s", &start, &end, perms) == 3) {
			inside = to ? start >= from && start < to : start <= from && from < end;
			if (inside && sum == -1)
				sum = 0;
			if (inside && !label)
				sum = (perms[0] == 'r') | (perms[1] == 'w') << 1 |
					(perms[2] == 'x') << 2 | (perms[3] == 's') << 3;
		} else if (inside && label && !strncmp(text, label, strlen(label)) &&
			   text[strlen(label)] == ':') {
			if (flag)
				sum = strstr(text, flag) != NULL;
			else if (sscanf(text + strlen(label) + 1, "%lu", &kb) == 1)
				sum += kb;
		}
	}
	fclose(file);
	return sum;
}

//@ status_kb: <stdio.h> <string.h> cannot
/* A number of /proc/PID/status in kB, -1 if it has no such label. */
static long status_kb(pid_t pid, const char *label)
{
	char path[64], text[512];
	long kb = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "r");
	if (!file)
		cannot("%s cannot be read: %s", path, strerror(errno));
	while (fgets(text, sizeof(text), file))
		if (!strncmp(text, label, strlen(label)) && text[strlen(label)] == ':')
			sscanf(text + strlen(label) + 1, "%ld", &kb);
	fclose(file);
	return kb;
}

//@ number: <stdio.h>
/* A number in a file, -1 if there is none. */
static long number(const char *path)
{
	FILE *file = fopen(path, "r");
	long value = -1;

	if (!file)
		return -1;
	if (fscanf(file, "%ld", &value) != 1)
		value = -1;
	fclose(file);
	return value;
}

//@ pools: number
#define POOL_2M "/sys/kernel/mm/hugepages/hugepages-2048kB/"
#define POOL_1G "/sys/kernel/mm/hugepages/hugepages-1048576kB/"

struct pool {
	long total, free, rsvd, surp;
};

static struct pool pool_of(const char *dir)
{
	static const char *const names[] = {
		"nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages"
	};
	long values[4];
	char path[128];
	int i;

	for (i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "%s%s", dir, names[i]);
		values[i] = number(path);
	}
	return (struct pool){ values[0], values[1], values[2], values[3] };
}

//@ before: pools
static struct pool before_2m, before_1g;	/* ahead of the program */

//@ corrupted: <stdio.h>
static long corrupted_before;	/* ahead of the program */

/* HardwareCorrupted of /proc/meminfo in pages. */
static long corrupted(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char text[128];
	long kb = 0;

	while (file && fgets(text, sizeof(text), file))
		sscanf(text, "HardwareCorrupted: %ld", &kb);
	if (file)
		fclose(file);
	return kb / 4;
}

//@ kmsg: <fcntl.h> <string.h> <unistd.h> shared
/* What the kernel logged since kmsg_open. */
static int kmsg = -1;

static int kmsg_open(void)
{
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	return kmsg == -1 ? -1 : (int)lseek(kmsg, 0, SEEK_END);
}

/* Is the function in this line of a trace? The compiler may have split it: f.cold, f.isra.0. */
static int kmsg_names(const char *text, const char *function)
{
	size_t length = strlen(function);

	for (; (text = strstr(text, function)); text += length)
		if (strchr(" :", text[-1]) && (text[length] == '+' || text[length] == '.'))
			return 1;
	return 0;
}

/* Is there a report that opens so and names this function (NULL: whatever it names)? */
static int kmsg_shows(const char *head, const char *function)
{
	char record[8192], *text;
	int open = 0;
	ssize_t got;

	for (;;) {
		got = read(kmsg, record, sizeof(record) - 1);
		if (got == -1 && errno == EPIPE)
			continue;	/* it was overwritten: go on with what is there */
		if (got <= 0)
			return 0;
		record[got] = 0;
		text = strchr(record, ';');
		if (!text)
			continue;
		if (strstr(text, head)) {
			open = 1;
			snprintf(s->report, sizeof(s->report), "%.*s",
				 (int)strcspn(text + 1, "\n"), text + 1);
		}
		if (open && (!function || kmsg_names(text, function)))
			return 1;
	}
}

//@ settings: put_file <stdio.h> <string.h>
@SETTINGS@
/* The chosen word of "always [madvise] never", or the whole text. */
static void chosen(const char *path, char *word, size_t size)
{
	char text[256] = "", *from = text, *end;
	FILE *file = fopen(path, "r");

	if (file && !fgets(text, sizeof(text), file))
		text[0] = 0;
	if (file)
		fclose(file);
	text[strcspn(text, "\n")] = 0;
	if (strchr(text, '[') && strchr(text, ']')) {
		from = strchr(text, '[') + 1;
		end = strchr(from, ']');
		if (end)
			*end = 0;
	}
	snprintf(word, size, "%s", from);
}

/* Makes the machine what it was where the bug was seen, as far as it matters. */
static int set_up(void)
{
	size_t i;

	for (i = 0; i < SETTINGS; i++)
		chosen(settings[i].path, settings[i].was, sizeof(settings[i].was));
	for (i = 0; i < SETTINGS; i++) {
		if (!settings[i].wanted || !strcmp(settings[i].was, settings[i].wanted))
			continue;
		if (put_file(settings[i].path, settings[i].wanted) == -1 && settings[i].needed) {
			say("%s cannot be set to %s", settings[i].path, settings[i].wanted);
			return -1;
		}
	}
	return 0;
}

static void put_back(void)
{
	char now[64];
	size_t i = SETTINGS;

	while (i-- > 0) {
		chosen(settings[i].path, now, sizeof(now));
		if (strcmp(now, settings[i].was))
			put_file(settings[i].path, settings[i].was);
	}
}

//@ need_pool: pools say
/* All pages of a pool are free and nobody was promised one. */
static int need_pool(const char *dir, const char *size, long pages)
{
	struct pool p = pool_of(dir);

	if (p.total == pages && p.free == pages && p.rsvd == 0 && p.surp == 0)
		return 0;
	say("needs a pool of %ld free huge pages of %s; there are %ld, %ld free, %ld reserved",
	    pages, size, p.total, p.free, p.rsvd);
	return -1;
}

//@ need_nodes: <unistd.h> <stdio.h> say
static int need_nodes(int nodes)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", nodes - 1);
	if (access(path, F_OK) == 0)
		return 0;
	say("needs %d NUMA nodes", nodes);
	return -1;
}

//@ say_seen: say cannot
static void say_seen(const struct seen *c)
{
	switch (c->how) {
	case RETURNED:
		say("seen: it gave %ld", c->ret);
		break;
	case FAILED:
		say("seen: it failed, errno %d (%s)", c->err, strerror(c->err));
		break;
	case SIGNALLED:
		say("seen: signal %d, si_code %d, si_addr 0x%lx, si_addr_lsb %d", c->signo,
		    c->code, c->addr, c->lsb);
		break;
	case WAITED:
		say("seen: it did not return by itself");
		break;
	default:
		cannot("the line was not run");
	}
}

//@ say_word: say
static void say_word(unsigned long word)
{
	unsigned int serial = word >> 32, page = word;

	if (!word)
		say("seen: zero");
	else if (serial >= 0x80000000U)
		say("seen: the copy of u%u's handler to page %u", serial - 0x80000000U, page);
	else
		say("seen: the store of line %u to page %u (0x%lx)", serial - 1, page, word);
}

//@ say_entry: say
static void say_entry(unsigned long e)
{
	say("seen:%s%s%s%s%s%s", e >> 63 & 1 ? " present" : "", e >> 62 & 1 ? " swap" : "",
	    e >> 61 & 1 ? " file" : "", e >> 57 & 1 ? " uffd-wp" : "",
	    e >> 56 & 1 ? " exclusive" : "", e ? "" : " nothing");
}

//@ no_leak: before say <unistd.h>
/* Freed pages may take a moment to come back. */
static int no_leak(const char *dir, const struct pool *before)
{
	struct pool now;
	int i;

	for (i = 0; i < 100; i++) {
		now = pool_of(dir);
		if (now.total == before->total && now.free == before->free &&
		    now.rsvd == before->rsvd && now.surp == before->surp)
			break;
		usleep(10000);
	}
	say("before: total %ld free %ld reserved %ld surplus %ld", before->total, before->free,
	    before->rsvd, before->surp);
	say("seen: total %ld free %ld reserved %ld surplus %ld", now.total, now.free, now.rsvd,
	    now.surp);
	return i < 100;
}
