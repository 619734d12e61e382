/* A first process for tests: answers one-line commands on descriptor 3, each with "<length>\n<text>". Ends with code 7
 * at end-of-file. Static, so that it runs in a root without any file. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static char out[1 << 20];
static size_t used;

static void say(const char *format, ...) {
	va_list args;
	va_start(args, format);
	used += vsnprintf(out + used, sizeof out - used, format, args);
	va_end(args);
}

static void answer(void) {
	char head[32];
	int length = snprintf(head, sizeof head, "%zu\n", used);
	write(3, head, length);
	for (size_t done = 0; done < used;) {
		ssize_t n = write(3, out + done, used - done);
		if (n < 0) exit(8);
		done += n;
	}
	used = 0;
}

static void cat(const char *path) {
	int fd = open(path, O_RDONLY);
	if (fd < 0) { say("errno %d", errno); return; }
	ssize_t n;
	while ((n = read(fd, out + used, sizeof out - used)) > 0) used += n;
	if (n < 0) say("errno %d", errno);
	close(fd);
}

static void list(const char *path) {
	DIR *dir = opendir(path);
	if (!dir) { say("errno %d", errno); return; }
	struct dirent *entry;
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) say("%s\n", entry->d_name);
	closedir(dir);
}

static void put(const char *path) {
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0) { say("errno %d", errno); return; }
	if (write(fd, "x", 1) == 1) say("ok"); else say("errno %d", errno);
	close(fd);
}

/* A node of the machine's null device: harmless even if it does open. */
static void node(const char *path) {
	say("mknod %d ", mknod(path, S_IFCHR | 0666, makedev(1, 3)) ? errno : 0);
	int fd = open(path, O_RDWR);
	say("open %d", fd < 0 ? errno : 0);
	if (fd >= 0) close(fd);
}

static void eat(size_t megabytes) {
	pid_t pid = fork();
	if (pid == 0) {
		char *memory = malloc(megabytes << 20);
		if (!memory) _exit(9);
		memset(memory, 1, megabytes << 20);
		_exit(memory[12345] == 1 ? 0 : 1);
	}
	int status;
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status)) say("signal %d", WTERMSIG(status)); else say("exit %d", WEXITSTATUS(status));
}

static void forks(int most) {
	int made = 0;
	for (; made < most; made++) {
		pid_t pid = fork();
		if (pid < 0) break;
		if (pid == 0) { pause(); _exit(0); }
	}
	say("%d", made);
}

static void own(char *rest) {
	char *path = strtok(rest, " "), *uid = strtok(NULL, " "), *gid = strtok(NULL, " ");
	say("%d", chown(path, strtoul(uid, 0, 10), strtoul(gid, 0, 10)) ? errno : 0);
}

static void look(const char *path) {
	struct stat st;
	if (lstat(path, &st)) say("errno %d", errno);
	else say("%u:%u", st.st_uid, st.st_gid);
}

static void mode(const char *path) {
	struct stat st;
	if (lstat(path, &st)) say("errno %d", errno);
	else say("%o", st.st_mode);
}

/* The image's own copy of this program, as another user; it answers by `show`. */
static void run_as(char *rest) {
	char *path = strtok(rest, " ");
	unsigned uid = strtoul(strtok(NULL, " "), 0, 10);
	int ends[2];
	if (pipe(ends)) { say("pipe %d", errno); return; }
	pid_t pid = fork();
	if (pid == 0) {
		dup2(ends[1], 1);
		if (setgroups(0, NULL) || setgid(uid) || setuid(uid)) { printf("ids %d", errno); fflush(stdout); _exit(1); }
		execl(path, path, "show", NULL);
		printf("exec %d", errno);
		fflush(stdout);
		_exit(1);
	}
	close(ends[1]);
	ssize_t n;
	while ((n = read(ends[0], out + used, sizeof out - used)) > 0) used += n;
	close(ends[0]);
	waitpid(pid, NULL, 0);
}

static int show(void) {
	char line[256], caps[64] = "";
	FILE *status = fopen("/proc/self/status", "r");
	while (status && fgets(line, sizeof line, status)) sscanf(line, "CapEff: %63s", caps);
	int raw = socket(AF_INET, SOCK_RAW, 1);
	printf("uid %d euid %d caps %s raw %d", getuid(), geteuid(), caps, raw < 0 ? errno : 0);
	return 0;
}

/* CAP_NET_RAW, permitted and effective, in the form that setcap(8) writes. */
static void give_raw(const char *path) {
	unsigned data[5] = {0x02000001, 1 << 13, 0, 0, 0};
	say("%d", setxattr(path, "security.capability", data, sizeof data, 0) ? errno : 0);
}

/* The owner of a new terminal. */
static void terminal(void) {
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	if (master < 0 || grantpt(master) || unlockpt(master)) { say("errno %d", errno); return; }
	look(ptsname(master));
	close(master);
}

/* Instances of inotify, kept open. */
static void watch(int most) {
	int made = 0;
	while (made < most && inotify_init() >= 0) made++;
	say("%d", made);
}

static void keyring(void) {
	long n = syscall(SYS_keyctl, 6, -3, out, 256);
	if (n < 0) say("errno %d", errno); else used = n - 1;
}

int main(int argc, char **argv) {
	if (argc > 1 && !strcmp(argv[1], "show")) return show();
	FILE *in = fdopen(3, "r");
	char line[4096];
	while (in && fgets(line, sizeof line, in)) {
		line[strcspn(line, "\n")] = 0;
		char *rest = strchr(line, ' ');
		if (rest) *rest++ = 0; else rest = "";
		if (!strcmp(line, "cat")) cat(rest);
		else if (!strcmp(line, "list")) list(rest);
		else if (!strcmp(line, "put")) put(rest);
		else if (!strcmp(line, "node")) node(rest);
		else if (!strcmp(line, "eat")) eat(atol(rest));
		else if (!strcmp(line, "forks")) forks(atoi(rest));
		else if (!strcmp(line, "id")) say("pid %d uid %d session %d", getpid(), getuid(), getsid(0));
		else if (!strcmp(line, "mount")) say("%d", mount("x", rest, "tmpfs", 0, "") ? errno : 0);
		else if (!strcmp(line, "own")) own(rest);
		else if (!strcmp(line, "look")) look(rest);
		else if (!strcmp(line, "mode")) mode(rest);
		else if (!strcmp(line, "run")) run_as(rest);
		else if (!strcmp(line, "give-raw")) give_raw(rest);
		else if (!strcmp(line, "terminal")) terminal();
		else if (!strcmp(line, "watch")) watch(atoi(rest));
		else if (!strcmp(line, "keyring")) keyring();
		else if (!strcmp(line, "remove")) say("%d", remove(rest) ? errno : 0);
		else if (!strcmp(line, "mkdir")) say("%d", mkdir(rest, 0755) ? errno : 0);
		else if (!strcmp(line, "linger")) for (;;) pause();
		else if (!strcmp(line, "args")) for (int i = 0; i < argc; i++) say("%s ", argv[i]);
		else if (!strcmp(line, "enter")) { /* a control group below the directory of this descriptor */
			char *group = rest, path[256];
			int dir = strtol(rest, &group, 10);
			snprintf(path, sizeof path, "%s/cgroup.procs", group + strspn(group, " "));
			int fd = openat(dir, path, O_WRONLY);
			say("%d", fd < 0 || write(fd, "0", 1) != 1 ? errno : 0);
		}
		else if (!strcmp(line, "group")) { /* a control group below the one handed over */
			say("mkdir %d ", mkdirat(4, rest, 0755) ? errno : 0);
			char path[256];
			snprintf(path, sizeof path, "%s/cgroup.procs", rest);
			int fd = openat(4, path, O_WRONLY);
			say("move %d", fd < 0 || write(fd, "0", 1) != 1 ? errno : 0);
		}
		answer();
	}
	return 7;
}
