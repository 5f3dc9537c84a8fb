// probe is the command that the inits under test run. Every first argument is another behaviour; what it learns goes to stdout, one fact per line,
// written with one write(2) so that lines of several processes do not mix. It is static and needs neither /proc nor a shell.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void say(const char *format, ...) {
	char line[4096];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (write(1, line, n) < 0) _exit(90);
}

static void pause_ms(long ms) {
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	while (nanosleep(&t, &t) < 0 && errno == EINTR) {}
}

// All 64 signals, 32 and 33 included: glibc's own functions leave those two out.
static void block_all(void) {
	unsigned long long all = ~0ull;
	if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8)) _exit(91);
}

// next_signal waits for any signal; 0 after ms milliseconds without one, never when ms is negative.
static int next_signal(long ms) {
	unsigned long long all = ~0ull;
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	for (;;) {
		int n = syscall(SYS_rt_sigtimedwait, &all, NULL, ms < 0 ? NULL : &t, 8);
		if (n > 0) return n;
		if (errno == EAGAIN) return 0;
	}
}

// signals prints every signal it gets; the name tells several apart.
static void signals(const char *name) {
	block_all();
	say("%s ready\n", name);
	for (;;) say("%s %d\n", name, next_signal(-1));
}

static void facts(void) {
	unsigned long long blocked = 0, ignored = 0, caught = 0;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &blocked, 8);
	for (int n = 1; n <= 64; n++) {
		struct { void *handler; unsigned long flags; void *restorer; unsigned long long mask; } action = {0};
		if (syscall(SYS_rt_sigaction, n, NULL, &action, 8)) continue;
		if (action.handler == (void *)SIG_IGN) ignored |= 1ull << (n - 1);
		else if (action.handler != (void *)SIG_DFL) caught |= 1ull << (n - 1);
	}
	say("SigBlk=%llx\nSigIgn=%llx\nSigCgt=%llx\n", blocked, ignored, caught);
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	say("nofile=%llu:%llu\n", (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
	for (int fd = 0; fd < 256; fd++) {
		struct stat st;
		if (fstat(fd, &st) == 0) say("fd=%d:%llu\n", fd, (unsigned long long)st.st_ino);
	}
	mode_t mask = umask(0);
	char cwd[4096] = "";
	if (!getcwd(cwd, sizeof cwd)) cwd[0] = 0;
	say("umask=%o\ncwd=%s\nnice=%d\nnnp=%d\npid=%d\nppid=%d\npgrp=%d\nsid=%d\n", mask, cwd, getpriority(PRIO_PROCESS, 0),
	    prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), getpid(), getppid(), getpgrp(), getsid(0));
	char oom[16] = "?";
	int fd = open("/proc/self/oom_score_adj", O_RDONLY);
	if (fd >= 0) {
		ssize_t n = read(fd, oom, sizeof oom - 1);
		oom[n > 0 ? n - 1 : 0] = 0;
		close(fd);
	}
	int pdeathsig = 0;
	prctl(PR_GET_PDEATHSIG, &pdeathsig);
	say("oom=%s\npdeathsig=%d\n", oom, pdeathsig);
}

static void words(char **list) {
	for (; *list; list++)
		for (size_t done = 0, all = strlen(*list) + 1; done < all;) {
			ssize_t n = write(1, *list + done, all - done);
			if (n < 0) _exit(92);
			done += n;
		}
}

// orphan forks a process whose parent dies at once; it returns in the orphan only, after the parent is gone.
static int orphan(void) {
	pid_t middle = fork();
	if (middle < 0) return -1;
	if (middle == 0) {
		pid_t parent = getpid();
		pid_t last = fork();
		if (last < 0) _exit(93);
		if (last > 0) _exit(0);
		while (getppid() == parent) pause_ms(1);
		return 1;
	}
	int status;
	while (waitpid(middle, &status, 0) < 0 && errno == EINTR) {}
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static void make_orphans(int count, int code, int max_ms) {
	for (int i = 0; i < count; i++) {
		int is = orphan();
		if (is < 0) {
			pause_ms(5);
			i--;
			continue;
		}
		if (is) {
			if (max_ms) pause_ms((getpid() * 7919) % max_ms);
			_exit(code);
		}
	}
}

int main(int argc, char **argv) {
	if (argc < 2) return 94;
	const char *what = argv[1];
	int number = argc > 2 ? atoi(argv[2]) : 0;
	// A test that gives up kills the init; the probe must not outlive it. Only where the init is the parent, so not in orphans.
	if (strcmp(what, "facts") != 0) prctl(PR_SET_PDEATHSIG, SIGKILL);

	if (!strcmp(what, "exit")) return number;
	if (!strcmp(what, "facts")) return facts(), 0;
	if (!strcmp(what, "args")) return words(argv), 0;
	if (!strcmp(what, "env")) return words(environ), 0;
	if (!strcmp(what, "die")) {
		struct rlimit none = {0, 0};
		setrlimit(RLIMIT_CORE, &none);
		kill(getpid(), number);
		pause();
	}
	if (!strcmp(what, "wait")) { // until a signal with its default action comes
		say("ready\n");
		for (;;) pause();
	}
	if (!strcmp(what, "signals")) signals("got");
	if (!strcmp(what, "family")) { // parent and child in one group, both print what they get
		pid_t child = fork();
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			signals("child");
		}
		signals("parent");
	}
	if (!strcmp(what, "stubborn")) { // TERM is counted and does nothing; USR1 ends with the number
		block_all();
		say("ready\n");
		for (;;) {
			int n = next_signal(-1);
			say("got %d\n", n);
			if (n == SIGUSR1) return number;
		}
	}
	if (!strcmp(what, "orphans")) { // count, then exit code after a signal
		make_orphans(number, 3, 50);
		block_all();
		say("ready\n");
		while (next_signal(-1) != SIGUSR1) {}
		return argc > 3 ? atoi(argv[3]) : 0;
	}
	if (!strcmp(what, "crowd")) { // die with the number while many orphans die with 3
		make_orphans(60, 3, 3);
		return number;
	}
	if (!strcmp(what, "phantom")) { // keep the init busy with deaths and print every signal that comes for no reason
		block_all();
		for (int i = 0; i < number; i++) {
			make_orphans(1, 3, 2);
			int n;
			while ((n = next_signal(0)) != 0)
				if (n != SIGCHLD) say("got %d\n", n);
		}
		return 0;
	}
	if (!strcmp(what, "ppid")) { // who is the parent of an orphan
		if (orphan() == 1) {
			say("orphan %d\n", getppid());
			_exit(0);
		}
		say("init %d\n", getppid());
		pause_ms(200);
		return 0;
	}
	if (!strcmp(what, "attack")) { // send PID 1 what a broken program might
		block_all();
		for (int i = 2; i < argc; i++) {
			kill(getppid(), atoi(argv[i]));
			pause_ms(50);
		}
		say("survived\n");
		return 7;
	}
	if (!strcmp(what, "leftover")) { // an orphan that needs a while to end after TERM (number ms; negative: ignores it), and a main that ends with 5
		int ready[2];
		if (pipe(ready)) return 95;
		if (orphan() == 1) {
			prctl(PR_SET_PDEATHSIG, 0);
			block_all();
			if (write(ready[1], "x", 1) != 1) _exit(96);
			say("pid %d\n", getpid());
			int n;
			while ((n = next_signal(-1)) != SIGTERM || number < 0) say("orphan got %d\n", n);
			say("orphan got %d\n", n);
			pause_ms(number);
			say("orphan done\n");
			_exit(0);
		}
		char x;
		while (read(ready[0], &x, 1) < 0 && errno == EINTR) {}
		return 5;
	}
	if (!strcmp(what, "fill")) { // fork until the pids run out, then wait; the children end with their parent
		int made = 0;
		for (;;) {
			pid_t child = fork();
			if (child < 0) break;
			if (child == 0) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				for (;;) pause();
			}
			made++;
		}
		say("full\n");
		for (;;) pause();
	}
	return 97;
}
