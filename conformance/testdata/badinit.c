// badinit is an init with switches for its defects. Without one (-d none) it passes the whole suite, as far as it has the feature; with one it must fail
// the case that looks for it. So every case is known to be able to fail, and to fail for its reason.
//
//	badinit -d DEFECT [-g] [-e CODE] [-r FROM:TO] [-p SIGNAL] [-t SECONDS] -- COMMAND [ARGS]
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *defect = "none";
static int has(const char *name) { return strcmp(defect, name) == 0; }

static int group, remap[256], rewrite[65], deadline = 0;
static pid_t child = -1;
static int foreground; // the terminal was ours and is lent to the child

static void *idle(void *unused) {
	for (;;) pause();
	return unused;
}

static void die(int n) { _exit(128 + n); }

static void lend_terminal(void) {
	if (foreground) tcsetpgrp(0, child);
}

static int code_of(int status) {
	if (has("lose-code")) return 0;
	if (WIFEXITED(status)) return has("127-is-ours") && WEXITSTATUS(status) == 127 ? 1 : WEXITSTATUS(status);
	return has("signal-is-255") ? 255 : 128 + WTERMSIG(status);
}

static void send(int n) {
	int whole = group;
	if (has("always-group")) whole = 1;
	if (has("never-group")) whole = 0;
	if (has("no-forward")) return;
	if (has("no-realtime") && n > 31) return;
	if (has("fork-to-forward")) {
		pid_t helper = fork();
		if (helper != 0) return;
		kill(child, n);
		_exit(0);
	}
	kill(whole ? -child : child, n);
	if (has("twice")) {
		struct timespec t = {0, 20000000};
		nanosleep(&t, NULL);
		kill(whole ? -child : child, n);
	}
	if (has("twice-at-once"))
		kill(whole ? -child : child, n);
	if (has("escalate") && n == SIGTERM) {
		struct timespec t = {0, 300000000};
		nanosleep(&t, NULL);
		kill(child, SIGKILL);
	}
}

// leftovers ends what the command has left behind: TERM, up to 5 seconds, KILL.
static void leftovers(void) {
	if (has("leave-behind") || has("no-reap")) return;
	if (has("kill-group")) kill(0, SIGTERM);
	if (getpid() != 1) return;
	kill(-1, has("kill-leftovers") ? SIGKILL : SIGTERM);
	kill(-1, SIGCONT);
	for (int waited = 0;; waited++) {
		pid_t pid;
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {}
		if (pid < 0) return;
		struct timespec t = {0, 10000000};
		nanosleep(&t, NULL);
		if (waited == 300 && !has("no-kill")) kill(-1, SIGKILL);
	}
}

int main(int argc, char **argv) {
	char *flags = "+d:ge:r:p:t:";
	if (argc > 2 && !strcmp(argv[1], "-d") && !strcmp(argv[2], "permute")) flags++;
	int c, from, to, pdeathsig = 0;
	for (int n = 0; n < 65; n++) rewrite[n] = n;
	if (argc == 4 && !strcmp(argv[3], "--version") && strcmp(argv[2], "no-version")) return puts("badinit version 0"), 0;
	opterr = 0;
	while ((c = getopt(argc, argv, flags)) != -1) switch (c) {
		case 'd': defect = optarg; break;
		case 'g': group = 1; break;
		case 'e': {
			char *end;
			long code = strtol(optarg, &end, 10);
			if ((*end || !*optarg || code < 0 || code > 255) && !has("lax-flags")) return fprintf(stderr, "badinit: bad code %s\n", optarg), 1;
			if (!has("no-remap")) remap[code & 255] = 1;
			break;
		}
		case 'r':
			if ((sscanf(optarg, "%d:%d", &from, &to) != 2 || from < 1 || from > 64 || to < 0 || to > 64) && !has("lax-flags"))
				return fprintf(stderr, "badinit: bad rewrite %s\n", optarg), 1;
			else if (!has("no-rewrite")) rewrite[from & 63] = to;
			break;
		case 'p': pdeathsig = atoi(optarg); break;
		case 't': deadline = atoi(optarg); break;
		default: return fprintf(stderr, "usage: badinit [flags] -- command\n"), has("usage-is-0") ? 0 : 1;
	}
	if (optind >= argc) return fprintf(stderr, "usage: badinit [flags] -- command\n"), has("usage-is-0") ? 0 : 1;
	char **command = argv + optind;
	if (has("flags-after"))
		for (char **word = command; *word; word++)
			if (!strcmp(*word, "-h")) return puts("usage"), 0;

	if (has("slow-start")) { // signals that come before it is ready are lost
		signal(SIGTERM, SIG_IGN);
		struct timespec t = {0, 15000000};
		nanosleep(&t, NULL);
		signal(SIGTERM, SIG_DFL);
	}
	sigset_t all, old;
	sigfillset(&all);
	if (has("crash")) {
		const int fatal[] = {SIGSEGV, SIGABRT, SIGQUIT, SIGBUS, SIGFPE, SIGILL};
		for (unsigned i = 0; i < sizeof fatal / sizeof *fatal; i++) {
			sigdelset(&all, fatal[i]);
			signal(fatal[i], die);
		}
	}
	if (has("dies-of-hup")) {
		signal(SIGHUP, die);
		sigdelset(&all, SIGHUP);
	}
	if (has("dies-of-deaf")) {
		sigdelset(&all, SIGRTMIN);
		signal(SIGRTMIN, die);
		sigdelset(&all, SIGPROF);
		signal(SIGPROF, die);
	}
	sigprocmask(SIG_SETMASK, &all, &old);
	if (has("drop-early")) { // what came by now is thrown away
		struct timespec t = {0, 15000000}, now = {0, 0};
		nanosleep(&t, NULL);
		while (sigtimedwait(&all, NULL, &now) > 0) {}
	}
	if (pdeathsig && !has("no-pdeathsig")) prctl(PR_SET_PDEATHSIG, pdeathsig);
	if (getpid() != 1 && !has("no-subreaper")) prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (has("noisy")) fprintf(stderr, "badinit: hello\n");
	if (has("needs-proc") && access("/proc/self/stat", R_OK)) return 1;
	if (has("needs-dev") && access("/dev/null", R_OK)) return 1;
	if (has("needs-home") && !getenv("HOME")) return 1;
	if (has("writes-root")) {
		int fd = open("/run/badinit.pid", O_CREAT | O_WRONLY, 0600);
		if (fd < 0) return 1;
		unlink("/run/badinit.pid");
		close(fd);
	}
	if (has("many-threads"))
		for (int i = 0; i < 20; i++) {
			pthread_t t;
			if (pthread_create(&t, NULL, idle, NULL)) return 2;
		}
	int leaked = has("leak-fd") ? open("/", O_RDONLY) : -1;
	(void)leaked;
	if (has("close-fds"))
		for (int fd = 3; fd < 64; fd++) close(fd);
	if (has("copy-output")) {
		int p[2];
		if (pipe(p) == 0) {
			if (fork() == 0) {
				char b[4096];
				ssize_t n;
				close(p[1]);
				sigprocmask(SIG_SETMASK, &old, NULL);
				while ((n = read(p[0], b, sizeof b)) > 0)
					if (write(1, b, n) < 0) break;
				_exit(0);
			}
			dup2(p[1], 1);
			close(p[0]);
			close(p[1]);
		}
	}

	// Only a terminal that is ours may be lent; a start in the background must not take it.
	foreground = tcgetpgrp(0) >= 0 && (tcgetpgrp(0) == getpgrp() || has("steal-terminal"));
	if (has("no-terminal")) foreground = 0;
	child = fork();
	if (child < 0) return 125;
	if (child == 0) {
		if (!has("same-group")) {
			setpgid(0, 0);
			child = getpid();
			if (!has("no-terminal")) lend_terminal();
		}
		if (has("block-term")) {
			sigemptyset(&old);
			sigaddset(&old, SIGTERM);
		}
		sigprocmask(SIG_SETMASK, &old, NULL);
		if (has("ignore-pipe")) signal(SIGPIPE, SIG_IGN);
		if (has("umask")) umask(0777);
		if (has("nofile")) {
			struct rlimit r;
			getrlimit(RLIMIT_NOFILE, &r);
			r.rlim_cur = r.rlim_max;
			setrlimit(RLIMIT_NOFILE, &r);
		}
		if (has("nice")) setpriority(PRIO_PROCESS, 0, 10);
		if (has("nnp")) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		if (has("oom")) {
			int fd = open("/proc/self/oom_score_adj", O_WRONLY);
			if (fd >= 0 && write(fd, "900", 3)) close(fd);
		}
		if (has("child-cwd") && chdir("/")) _exit(1);
		if (has("add-env")) setenv("BADINIT", "1", 1);
		if (has("drop-empty"))
			for (char **p = command, **q = command;; p++) {
				if (*p && !**p) continue;
				*q++ = *p;
				if (!*p) break;
			}
		if (has("no-path")) execve(command[0], command, environ);
		else if (has("no-shell")) {
			char path[4096];
			if (!strchr(command[0], '/')) {
				snprintf(path, sizeof path, "/usr/bin/%s", command[0]);
				execv(path, command);
			}
			execv(command[0], command);
		} else execvp(command[0], command);
		int cause = errno;
		signal(SIGPIPE, SIG_IGN); // nobody may be reading
		if (!has("silent-exec")) fprintf(has("stdout-exec") ? stdout : stderr, "badinit: %s: %s\n", command[0], strerror(cause));
		fflush(NULL);
		if (has("exec-is-1")) _exit(1);
		_exit(cause == ENOENT ? 127 : 126);
	}
	if (!has("same-group")) setpgid(child, child);
	if (!has("keep-cwd") && chdir("/")) return 125;
	if (has("needs-stderr")) {
		signal(SIGPIPE, SIG_DFL);
		sigset_t p;
		sigemptyset(&p);
		sigaddset(&p, SIGPIPE);
		sigprocmask(SIG_UNBLOCK, &p, NULL);
		if (write(2, "badinit: started\n", 17) < 0) _exit(1);
	}

	for (;;) {
		siginfo_t info;
		int n = sigwaitinfo(&all, &info);
		if (n < 0) continue;
		if (n == SIGPIPE && has("needs-stderr")) _exit(1);
		if (n != SIGCHLD) {
			int to = rewrite[n];
			if (to) send(to);
			if (foreground && n == SIGCONT) lend_terminal();
			if (deadline && n == SIGTERM) {
				// Give the command its time, then kill it.
				for (int waited = 0; waited < deadline * 100; waited++) {
					struct timespec t = {0, 10000000};
					siginfo_t ended = {0};
					if (waitid(P_PID, child, &ended, WEXITED | WNOHANG | WNOWAIT) || ended.si_pid) break;
					nanosleep(&t, NULL);
				}
				if (!has("no-deadline")) kill(child, SIGKILL);
			}
			continue;
		}
		for (;;) {
			int status;
			pid_t pid = waitpid(has("no-reap") ? child : -1, &status, WNOHANG | WUNTRACED);
			if (pid <= 0) break;
			if (has("phantom")) kill(child, SIGURG);
			if (WIFSTOPPED(status)) {
				if (pid == child && foreground && !has("no-suspend")) {
					// The shell that started this must see its job stopped. It continues us with CONT, which is forwarded above.
					kill(getpid(), SIGSTOP);
				}
				continue;
			}
			if (pid == child || (has("theft") && WIFEXITED(status) && WEXITSTATUS(status) == 3)) {
				int code = code_of(status);
				leftovers();
				while (has("lingers") && WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP) pause();
				if (has("kill-reaped")) kill(child, SIGTERM);
				return remap[code] ? 0 : code;
			}
		}
	}
}
