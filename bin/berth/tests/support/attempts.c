// Attempts to get out of a sandbox, and things that must work in one. Each prints a line "name: result", where 0 is
// success and anything else the errno. With HOST set it is the control, run outside: what could do harm there has a
// mount namespace of its own, or arguments that stop at the check behind the permission.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btrfs.h>
#include <linux/fs.h>
#include <linux/keyctl.h>
#include <linux/nsfs.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ipc.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int on_host(void) { return getenv("HOST") != NULL; }
static int of(long answer) { return answer < 0 ? errno : 0; }

static void own_mounts(void) {
    if (on_host() && (unshare(CLONE_NEWNS) || mount(0, "/", 0, MS_REC | MS_PRIVATE, 0))) _exit(250);
}

static int mount_tmpfs(void) { own_mounts(); return of(mount("none", "/tmp", "tmpfs", 0, 0)); }
static int mount_bind(void) { own_mounts(); return of(mount("/", "/tmp", 0, MS_BIND | MS_REC, 0)); }
static int mount_proc(void) { own_mounts(); return of(mount("proc", "/tmp", "proc", 0, 0)); }
static int mount_cgroup2(void) { own_mounts(); return of(mount("none", "/tmp", "cgroup2", 0, 0)); }
static int release_agent(void) { own_mounts(); return of(mount("none", "/tmp", "cgroup", 0, "none,name=berth-escape")); }
static int remount_sys(void) { own_mounts(); return of(mount(0, "/sys", 0, MS_REMOUNT | MS_BIND, 0)); }
static int shared_root(void) { own_mounts(); return of(mount(0, "/", 0, MS_SHARED, 0)); }
static int unmount_proc(void) { own_mounts(); return of(umount2("/proc", MNT_DETACH)); }
static int fs_open(void) { own_mounts(); return of(syscall(430, "tmpfs", 0)); }
static int open_tree_clone(void) { own_mounts(); return of(syscall(428, AT_FDCWD, "/", 1)); }
static int mount_attributes(void) { own_mounts(); uint64_t attr[4] = {0}; return of(syscall(442, AT_FDCWD, "/tmp", 0, attr, 32)); }
static int pivot(void) { own_mounts(); return of(syscall(SYS_pivot_root, "/nowhere", "/nowhere")); }

static int unshare_user(void) { return of(unshare(CLONE_NEWUSER)); }
static int unshare_mounts(void) { return of(unshare(CLONE_NEWNS)); }
static int unshare_net(void) { return of(unshare(CLONE_NEWNET)); }
static int unshare_time(void) { return of(unshare(0x80)); }
static int clone_user(void) {
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return of(pid);
}
static int clone3_any(void) { uint64_t args[8] = {0}; args[4] = SIGCHLD; long pid = syscall(435, args, 64); if (pid == 0) _exit(0); return of(pid); }
static int setns_own(void) { int fd = open("/proc/self/ns/uts", O_RDONLY); return of(setns(fd, 0)); }

static int io_uring(void) { char params[120] = {0}; return of(syscall(425, 1, params)); }
static int bpf_map(void) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return of(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}
static int perf_event(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .exclude_kernel = 1};
    return of(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}
static int user_fault(void) { return of(syscall(SYS_userfaultfd, O_CLOEXEC | 1)); }
static int key_session(void) { return of(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1)); }
static int key_add(void) { return of(syscall(SYS_add_key, "user", "berth-escape", "x", 1, KEY_SPEC_PROCESS_KEYRING)); }
static int handle(void) {
    struct { struct file_handle head; char bytes[128]; } h = {.head.handle_bytes = 128};
    int mount_id, fd = open("/etc/hosts", O_RDONLY);
    if (name_to_handle_at(AT_FDCWD, "/etc/hosts", &h.head, &mount_id, 0)) return 251;
    return of(open_by_handle_at(fd, &h.head, O_RDONLY));
}
static int dmesg(void) { static char text[1 << 20]; return of(syscall(SYS_syslog, 3, text, sizeof text)); }
static int module_load(void) { return of(syscall(SYS_finit_module, -1, "", 0)); }
static int module_remove(void) { return of(syscall(SYS_delete_module, "berth-escape", O_NONBLOCK)); }
static int kexec(void) { return of(syscall(SYS_kexec_load, 0, 0, 0, ~0L)); }
static int reboot_bad(void) { return of(syscall(SYS_reboot, 0, 0, 0, 0)); }
static int swap_on(void) { return of(syscall(SYS_swapon, "/nowhere", 0)); }
static int account(void) { return of(syscall(SYS_acct, "/nowhere/file")); }
static int set_clock(void) { struct timespec bad = {0, -1}; return of(syscall(SYS_clock_settime, CLOCK_REALTIME, &bad)); }
static int set_hostname(void) { return of(syscall(SYS_sethostname, 0, -1)); }
static int ports(void) {
#ifdef SYS_iopl
    return of(syscall(SYS_iopl, 3));
#else
    return on_host() ? 0 : EPERM;
#endif
}
static int executable_data(void) { return of(personality(0x0400000)); }
static int vsock(void) { return of(socket(40, SOCK_STREAM, 0)); }
static int alg(void) { return of(socket(38, SOCK_SEQPACKET, 0)); }
static int type_ahead(void) {
    setsid();
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) return 252;
    int slave = open(ptsname(master), O_RDWR);
    if (slave < 0) return 253;
    ioctl(slave, TIOCSCTTY, 0);
    return of(ioctl(slave, TIOCSTI, "x"));
}

static int trace_init(void) { return of(ptrace(PTRACE_SEIZE, 1, 0, 0)); }
static int read_init(void) {
    char byte; struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    return of(process_vm_readv(1, &here, 1, &there, 1, 0));
}
static int limit_init(void) { struct rlimit old; return of(syscall(SYS_prlimit64, 1, RLIMIT_CPU, 0, &old)); }
static int schedule_init(void) { struct sched_param p = {0}; return of(sched_setscheduler(1, SCHED_IDLE, &p)); }
static int pin_init(void) { cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set); return of(sched_setaffinity(1, sizeof set, &set)); }
static int renice_init(void) { return of(setpriority(PRIO_PROCESS, 1, 19)); }
static int renice_user(void) { return of(setpriority(PRIO_USER, 0, 19)); }

static int open_for(const char *path, int flags) { return of(open(path, flags)); }
static int core_pattern(void) { return open_for("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int modprobe(void) { return open_for("/proc/sys/kernel/modprobe", O_WRONLY); }
static int drop_caches(void) { return open_for("/proc/sys/vm/drop_caches", O_WRONLY); }
static int sysrq(void) { return open_for("/proc/sysrq-trigger", O_WRONLY); }
static int kmsg_proc(void) { return open_for("/proc/kmsg", O_RDONLY | O_NONBLOCK); }
static int kmsg_dev(void) { return open_for("/dev/kmsg", O_RDONLY | O_NONBLOCK); }
static int uevent_helper(void) { return open_for("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY); }
static int sys_bus(void) { return open_for("/sys/bus/cpu/uevent", O_WRONLY); }
static int init_memory(void) { return open_for("/proc/1/mem", O_RDWR); }
static int init_program(void) { return open_for("/proc/1/exe", O_RDONLY); }
static int init_score(void) { return open_for("/proc/1/oom_score_adj", O_WRONLY); }
static int init_thread_score(void) { return open_for("/proc/1/task/1/oom_score_adj", O_WRONLY); }
static int init_namespace(void) { return open_for("/proc/1/ns/mnt", O_RDONLY); }
static int init_root(void) { return open_for("/proc/1/root/", O_RDONLY); }
static int init_descriptors(void) { char link[64]; return of(readlink("/proc/1/fd/0", link, sizeof link)); }
static int kcore(void) {
    char byte; int fd = open("/proc/kcore", O_RDONLY);
    if (fd < 0) return errno;
    return read(fd, &byte, 1) == 1 ? 0 : ENODATA;
}
// --- the namespaces and what they are made of

// All that are there: success of one is success.
static int init_namespaces(void) {
    static const char *const kinds[] = {"user", "pid", "pid_for_children", "net", "cgroup", "ipc", "uts", "time"};
    char path[64];
    int answer = ENOENT;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(path, sizeof path, "/proc/1/ns/%s", kinds[i]);
        if (!(answer = open_for(path, O_RDONLY))) return 0;
    }
    return answer;
}
static int enter_own_user(void) { return of(setns(open("/proc/self/ns/user", O_RDONLY), CLONE_NEWUSER)); }
static int enter_by_pidfd(void) { return of(setns(syscall(434, 1, 0), CLONE_NEWNS)); }
static int parent_of_user(void) { return of(ioctl(open("/proc/self/ns/user", O_RDONLY), NS_GET_PARENT)); }
static int owner_of_mounts(void) { return of(ioctl(open("/proc/self/ns/mnt", O_RDONLY), NS_GET_USERNS)); }
static int owner_of_processes(void) { return of(ioctl(open("/proc/self/ns/pid", O_RDONLY), NS_GET_USERNS)); }
static int parent_of_processes(void) { return of(ioctl(open("/proc/self/ns/pid", O_RDONLY), NS_GET_PARENT)); }
static int write_to(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    return fd < 0 ? errno : of(write(fd, text, strlen(text)));
}
static int user_map(void) { return write_to("/proc/self/uid_map", "0 0 4294967295"); }
static int group_map(void) { return write_to("/proc/self/gid_map", "0 0 4294967295"); }
static int init_user_map(void) { return write_to("/proc/1/uid_map", "0 0 4294967295"); }
static int set_groups(void) { return write_to("/proc/self/setgroups", "deny"); }
static const char *scratch(void) {
    static char path[64];
    snprintf(path, sizeof path, "/var/tmp/berth-escape-%d", getpid());
    if (!on_host()) memmove(path, path + 4, strlen(path + 4) + 1);
    close(open(path, O_RDWR | O_CREAT, 0600));
    return path;
}
static int give_to(uid_t uid) {
    const char *path = scratch();
    int answer = of(chown(path, uid, -1));
    unlink(path);
    return answer;
}
// The first id behind the range, one of another sandbox's, one that all hosts have.
static int chown_behind(void) { return give_to(262144); }
static int chown_stranger(void) { return give_to(1073741824); }
static int chown_last(void) { return give_to(4294967294u); }
static int become_stranger(void) { return of(setresuid(1073741824, -1, -1)); }
static int join_strangers(void) { gid_t all[] = {0, 1073741824}; return of(setgroups(2, all)); }

// --- the disk behind the root

static int on_scratch(unsigned long request, void *argument) {
    const char *path = scratch();
    int fd = open(path, O_RDWR), answer = of(ioctl(fd, request, argument)), none = 0;
    // What was made immutable outside would stay.
    ioctl(fd, FS_IOC_SETFLAGS, &none);
    unlink(path);
    return answer;
}
static int project_id(void) { struct fsxattr attr = {.fsx_projid = 4242}; return on_scratch(FS_IOC_FSSETXATTR, &attr); }
static int project_by_call(void) {
    uint64_t attr[3] = {0, 0, 4242};
    const char *path = scratch();
    int answer = of(syscall(469, AT_FDCWD, path, attr, 24, 0));
    unlink(path);
    return answer;
}
static int immutable(void) { int flags = FS_IMMUTABLE_FL; return on_scratch(FS_IOC_SETFLAGS, &flags); }
static int append_only(void) { int flags = FS_APPEND_FL; return on_scratch(FS_IOC_SETFLAGS, &flags); }
static int freeze(void) { return of(ioctl(open("/", O_RDONLY), FIFREEZE, 0)); }
// On the root, and on a file that is mounted from the same disk without an overlay between.
static int on_disk(unsigned long request, void *argument) {
    static char given[4096], copy[4096];
    memcpy(given, argument, 4096);
    memcpy(copy, argument, 4096);
    int first = of(ioctl(open("/", O_RDONLY), request, given));
    int second = of(ioctl(open("/etc/hosts", O_RDONLY), request, copy));
    return first && second ? first : 0;
}
static char page[4096];
static int subvolume(void) { strcpy(((struct btrfs_ioctl_vol_args *)page)->name, "berth-escape"); return on_disk(BTRFS_IOC_SUBVOL_CREATE, page); }
static int snapshot(void) {
    struct btrfs_ioctl_vol_args *args = (void *)page;
    args->fd = open("/", O_RDONLY);
    strcpy(args->name, "berth-escape");
    return on_disk(BTRFS_IOC_SNAP_CREATE, page);
}
static int subvolume_delete(void) { strcpy(((struct btrfs_ioctl_vol_args *)page)->name, "etc"); return on_disk(BTRFS_IOC_SNAP_DESTROY, page); }
static int subvolume_flags(void) { return on_disk(BTRFS_IOC_SUBVOL_SETFLAGS, page); }
static int quota_off(void) { ((struct btrfs_ioctl_quota_ctl_args *)page)->cmd = BTRFS_QUOTA_CTL_DISABLE; return on_disk(BTRFS_IOC_QUOTA_CTL, page); }
static int quota_group(void) { struct btrfs_ioctl_qgroup_create_args *args = (void *)page; args->create = 1; args->qgroupid = 1ull << 48 | 1; return on_disk(BTRFS_IOC_QGROUP_CREATE, page); }
static int quota_limit(void) { ((struct btrfs_ioctl_qgroup_limit_args *)page)->lim.flags = BTRFS_QGROUP_LIMIT_MAX_RFER; return on_disk(BTRFS_IOC_QGROUP_LIMIT, page); }
static int tree_search(void) {
    struct btrfs_ioctl_search_args *args = (void *)page;
    args->key = (struct btrfs_ioctl_search_key){.tree_id = 1, .max_objectid = -1, .max_offset = -1, .max_transid = -1, .max_type = 255, .nr_items = 1};
    return on_disk(BTRFS_IOC_TREE_SEARCH, page);
}
static int ino_paths(void) { struct btrfs_ioctl_ino_path_args *args = (void *)page; args->inum = 256; return on_disk(BTRFS_IOC_INO_PATHS, page); }
static int send_subvolume(void) { return on_disk(BTRFS_IOC_SEND, page); }
static int receive(void) { return on_disk(BTRFS_IOC_SET_RECEIVED_SUBVOL, page); }
static int device_add(void) { strcpy(((struct btrfs_ioctl_vol_args *)page)->name, "/dev/null"); return on_disk(BTRFS_IOC_ADD_DEV, page); }
static int resize(void) { strcpy(((struct btrfs_ioctl_vol_args *)page)->name, "1:max"); return on_disk(BTRFS_IOC_RESIZE, page); }
static int encoded_read(void) { return on_disk(_IOR(0x94, 64, char[128]), page); }
static int clone_of(const char *source) {
    int from = open(source, O_RDONLY);
    return from < 0 ? 249 : on_scratch(FICLONE, (void *)(long)from);
}
static int clone_proc(void) { return clone_of("/proc/version"); }
static int clone_hosts(void) { return clone_of("/etc/hosts"); }
static int quota_call(void) { return of(syscall(SYS_quotactl, 0x800003 << 8, "/dev/loop0", 0, 0)); }
static int quota_fd(void) { return of(syscall(443, open("/", O_RDONLY), 0x800003 << 8, 0, 0)); }

// --- what the guest holds

static int init_descriptor(void) {
    int pidfd = syscall(434, 1, 0), answer = EBADF;
    if (pidfd < 0) return errno;
    for (int fd = 0; fd < 64; fd++) {
        long copy = syscall(438, pidfd, fd, 0);
        if (copy >= 0) return 0;
        answer = errno;
    }
    return answer;
}
// Of every thread of the guest, that of the views included; success with one is success.
static int init_threads(int (*attempt)(int thread)) {
    DIR *all = opendir("/proc/1/task");
    int answer = ENOENT;
    for (struct dirent *entry; all && (entry = readdir(all));)
        if (atoi(entry->d_name) > 0 && !(answer = attempt(atoi(entry->d_name)))) return 0;
    return answer;
}
static int trace_one(int thread) { return of(ptrace(PTRACE_SEIZE, thread, 0, 0)); }
static int limit_one(int thread) { struct rlimit none = {0, 0}; return of(syscall(SYS_prlimit64, thread, RLIMIT_CPU, &none, 0)); }
static int schedule_one(int thread) { struct sched_param p = {0}; return of(sched_setscheduler(thread, SCHED_IDLE, &p)); }
static int renice_one(int thread) { return of(setpriority(PRIO_PROCESS, thread, 19)); }
static int pin_one(int thread) { cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set); return of(sched_setaffinity(thread, sizeof set, &set)); }
static int memory_of_one(int thread) { char path[64]; snprintf(path, sizeof path, "/proc/1/task/%d/mem", thread); return open_for(path, O_RDWR); }
static int trace_views(void) { return init_threads(trace_one); }
static int limit_views(void) { return init_threads(limit_one); }
static int schedule_views(void) { return init_threads(schedule_one); }
static int renice_views(void) { return init_threads(renice_one); }
static int pin_views(void) { return init_threads(pin_one); }
static int views_memory(void) { return init_threads(memory_of_one); }
static int fuse_open(void) { own_mounts(); return of(syscall(430, "fuse", 0)); }
static int fuse_control(void) { own_mounts(); return of(syscall(430, "fusectl", 0)); }
static int fuse_device(void) { return open_for("/dev/fuse", O_RDWR); }
static int fuse_abort(void) { return open_for("/sys/fs/fuse/connections/1/abort", O_WRONLY); }
static int loop_control(void) { return open_for("/dev/loop-control", O_RDWR); }
static int debug_files(void) { return open_for("/sys/kernel/debug/tracing", O_RDONLY | O_DIRECTORY); }
static int move_mounts(void) { own_mounts(); return of(syscall(429, -1, "", AT_FDCWD, "/tmp", 4)); }
static int key_request(void) { return of(syscall(SYS_request_key, "user", "berth-escape", 0, 0)); }
static int key_list(void) {
    char byte; int fd = open("/proc/keys", O_RDONLY);
    if (fd < 0) return errno;
    return read(fd, &byte, 1) == 1 ? 0 : ENODATA;
}

static int node(mode_t kind, int major, int minor) {
    char path[64];
    // Outside, /tmp is often a mount without devices itself.
    snprintf(path, sizeof path, "%s/berth-escape-%d", on_host() ? "/var/tmp" : "/tmp", getpid());
    if (mknod(path, kind | 0666, makedev(major, minor))) return errno;
    int answer = of(open(path, O_RDONLY));
    unlink(path);
    return answer;
}
static int character_node(void) { return node(S_IFCHR, 1, 3); }
static int memory_node(void) { return node(S_IFCHR, 1, 1); }
static int unknown_call(void) { return of(syscall(1000)); }

static int x32_call(void) {
#ifdef __x86_64__
    return of(syscall(0x40000000 + SYS_getpid));
#else
    return ENOSYS;
#endif
}

static int compat_call(void) {
#ifdef __x86_64__
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    return answer < 0 ? -answer : 0;
#else
    if (!on_host()) raise(SIGSYS);
    return 0;
#endif
}

#define TRY(name) {#name, name}
static const struct attempt { const char *name; int (*run)(void); } escapes[] = {
    TRY(mount_tmpfs), TRY(mount_bind), TRY(mount_proc), TRY(mount_cgroup2), TRY(release_agent), TRY(remount_sys),
    TRY(shared_root), TRY(unmount_proc), TRY(fs_open), TRY(open_tree_clone), TRY(mount_attributes), TRY(pivot),
    TRY(unshare_user), TRY(unshare_mounts), TRY(unshare_net), TRY(unshare_time), TRY(clone_user), TRY(clone3_any), TRY(setns_own),
    TRY(io_uring), TRY(bpf_map), TRY(perf_event), TRY(user_fault), TRY(key_session), TRY(key_add), TRY(handle),
    TRY(dmesg), TRY(module_load), TRY(module_remove), TRY(kexec), TRY(reboot_bad), TRY(swap_on), TRY(account),
    TRY(set_clock), TRY(set_hostname), TRY(ports), TRY(executable_data), TRY(vsock), TRY(alg), TRY(type_ahead),
    TRY(trace_init), TRY(read_init), TRY(limit_init), TRY(schedule_init), TRY(pin_init), TRY(renice_init), TRY(renice_user),
    TRY(core_pattern), TRY(modprobe), TRY(drop_caches), TRY(sysrq), TRY(kmsg_proc), TRY(kmsg_dev), TRY(uevent_helper),
    TRY(sys_bus), TRY(init_memory), TRY(init_program), TRY(init_score), TRY(init_thread_score), TRY(init_namespace),
    TRY(init_root), TRY(init_descriptors), TRY(kcore), TRY(character_node), TRY(memory_node), TRY(unknown_call), TRY(x32_call), TRY(compat_call),
    TRY(init_namespaces), TRY(enter_own_user), TRY(enter_by_pidfd), TRY(parent_of_user), TRY(owner_of_mounts), TRY(owner_of_processes),
    TRY(parent_of_processes), TRY(user_map), TRY(group_map), TRY(init_user_map), TRY(set_groups), TRY(chown_behind), TRY(chown_stranger),
    TRY(chown_last), TRY(become_stranger), TRY(join_strangers), TRY(project_id), TRY(project_by_call), TRY(immutable), TRY(append_only),
    TRY(freeze), TRY(subvolume), TRY(snapshot), TRY(subvolume_delete), TRY(subvolume_flags), TRY(quota_off), TRY(quota_group), TRY(quota_limit),
    TRY(tree_search), TRY(ino_paths), TRY(send_subvolume), TRY(receive), TRY(device_add), TRY(resize), TRY(encoded_read), TRY(clone_proc), TRY(clone_hosts),
    TRY(quota_call), TRY(quota_fd), TRY(init_descriptor), TRY(trace_views), TRY(limit_views), TRY(schedule_views), TRY(renice_views), TRY(pin_views),
    TRY(views_memory), TRY(fuse_open), TRY(fuse_control), TRY(fuse_device), TRY(fuse_abort), TRY(loop_control), TRY(debug_files), TRY(move_mounts),
    TRY(key_request), TRY(key_list),
};
// Not outside: they would be done to the machine's own first process, or make user namespaces.
static const char *const never_on_host[] = {
    "unshare_user", "clone_user", "trace_init", "read_init", "schedule_init", "pin_init", "renice_init", "renice_user",
    "init_memory", "init_score", "init_thread_score",
    "user_map", "group_map", "init_user_map", "set_groups", "freeze", "subvolume", "snapshot", "subvolume_delete", "quota_off", "quota_group",
    "quota_limit", "receive", "device_add", "resize", "trace_views", "limit_views", "schedule_views", "renice_views", "pin_views", "views_memory",
    "fuse_abort", "init_descriptor",
};

static void run(const struct attempt *attempt) {
    for (size_t i = 0; on_host() && i < sizeof never_on_host / sizeof *never_on_host; i++)
        if (!strcmp(attempt->name, never_on_host[i])) return;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) _exit(attempt->run());
    int status;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status)) printf("%s: %d\n", attempt->name, WEXITSTATUS(status));
    else printf("%s: signal %d\n", attempt->name, WTERMSIG(status));
}

// --- what must work ---------------------------------------------------------------------------------------------

static int trace_child(void) {
    pid_t pid = fork();
    if (pid == 0) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); _exit(7); }
    int status;
    waitpid(pid, &status, 0);
    if (!WIFSTOPPED(status)) return 1;
    static long word = 42;
    errno = 0;
    if (ptrace(PTRACE_PEEKDATA, pid, &word, 0) != 42) return 2;
    char byte; struct iovec here = {&byte, 1}, there = {&word, 1};
    if (process_vm_readv(pid, &here, 1, &there, 1, 0) != 1) return 3;
    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 4;
}
static void *thread(void *count) { __atomic_add_fetch((int *)count, 1, __ATOMIC_SEQ_CST); return 0; }
static int threads(void) {
    int count = 0; pthread_t all[16];
    for (int i = 0; i < 16; i++) if (pthread_create(&all[i], 0, thread, &count)) return 1;
    for (int i = 0; i < 16; i++) pthread_join(all[i], 0);
    return count == 16 ? 0 : 2;
}
static int change_root(void) { return of(chroot("/tmp")); }
static int fifo(void) { unlink("/tmp/fifo"); return of(mkfifo("/tmp/fifo", 0600)); }
static int fixed_addresses(void) { return of(personality(ADDR_NO_RANDOMIZE)); }
static int own_files(void) { return of(unshare(CLONE_FILES | CLONE_FS)); }
static int other_user(void) { return setgid(1000) || setuid(1000) ? errno : getuid() == 1000 ? 0 : 1; }
static int raw_socket(void) { return of(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)); }
static int netlink(void) { return of(socket(AF_NETLINK, SOCK_RAW, 0)); }
static int own_limit(void) { struct rlimit l; if (getrlimit(RLIMIT_NOFILE, &l)) return errno; l.rlim_cur = 64; return of(setrlimit(RLIMIT_NOFILE, &l)); }
static int own_priority(void) { return of(setpriority(PRIO_PROCESS, 0, 5)); }
static int spawned(void) { return system("exit 3") == 3 << 8 ? 0 : 1; }

static const struct attempt works[] = {
    TRY(trace_child), TRY(threads), TRY(change_root), TRY(fifo), TRY(fixed_addresses), TRY(own_files), TRY(other_user),
    TRY(raw_socket), TRY(netlink), TRY(own_limit), TRY(own_priority), TRY(spawned),
};

// --- single ones ------------------------------------------------------------------------------------------------

static int reach(const char *address, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    struct timeval patience = {1, 0};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) return 254;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return of(connect(fd, (struct sockaddr *)&to, sizeof to));
}
// "@name" is in the abstract name space.
static int reach_unix(const char *name) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(to.sun_path, name, length < sizeof to.sun_path ? length : 0);
    if (*name == '@') to.sun_path[0] = 0;
    return of(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + length));
}
static int swap_forever(const char *one, const char *other) {
    for (;;) if (syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, 2)) return errno;
}
// Opens the program of every process it finds, which is the guest's own while a command is being started.
static int hunt(int seconds) {
    char path[64], target[256];
    int seen = 0;
    for (time_t end = time(0) + seconds; time(0) < end;)
        for (int pid = 2; pid < 400; pid++) {
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            int fd = open(path, O_RDONLY);
            if (fd < 0) continue;
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            ssize_t length = readlink(path, target, sizeof target - 1);
            if (length > 0 && (target[length] = 0, strstr(target, "memfd:"))) {
                seen++;
                int writable = open(path, O_RDWR);
                if (writable >= 0 && pwrite(writable, "x", 1, 0) == 1) { puts("rewritten"); return 0; }
                if (writable >= 0) close(writable);
            }
            close(fd);
        }
    printf("seen %d, never written\n", seen);
    return 0;
}

// A process by its number: that of another sandbox on the host means nothing inside.
static int poke(int pid) {
    cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set);
    char byte, path[64]; struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    snprintf(path, sizeof path, "/proc/%d", pid);
    printf("kill: %d\n", of(kill(pid, 0)));
    printf("getpriority: %d\n", (errno = 0, getpriority(PRIO_PROCESS, pid), errno));
    printf("affinity: %d\n", of(sched_getaffinity(pid, sizeof set, &set)));
    printf("limits: %d\n", of(syscall(SYS_prlimit64, pid, RLIMIT_CPU, 0, &(struct rlimit){0})));
    printf("memory: %d\n", of(process_vm_readv(pid, &here, 1, &there, 1, 0)));
    printf("pidfd: %d\n", of(syscall(434, pid, 0)));
    printf("proc: %d\n", of(access(path, F_OK)));
    return 0;
}
// Every file below that can be opened for writing; processes' own are another matter.
static void writable(const char *path, int depth) {
    DIR *all = depth < 16 ? opendir(path) : 0;
    for (struct dirent *entry; all && (entry = readdir(all));) {
        if (entry->d_name[0] == '.' || (!strcmp(path, "/proc") && atoi(entry->d_name))) continue;
        char below[4096];
        struct stat file;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (lstat(below, &file)) continue;
        if (S_ISDIR(file.st_mode)) writable(below, depth + 1);
        else if (S_ISREG(file.st_mode) && !of(open(below, O_WRONLY | O_NONBLOCK))) puts(below);
    }
    if (all) closedir(all);
}
static int crash(void) { struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}, most; getrlimit(RLIMIT_CORE, &most); all.rlim_max = all.rlim_cur = most.rlim_max; setrlimit(RLIMIT_CORE, &all); abort(); }

// Shared memory that outlives its maker, filled page by page.
static int segment(int megabytes) {
    char *memory = shmat(shmget(0x62657274, (size_t)megabytes << 20, IPC_CREAT | 0600), 0, 0);
    if (memory == (void *)-1) return errno;
    memset(memory, 1, (size_t)megabytes << 20);
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "escapes")) for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) run(&escapes[i]);
    else if (!strcmp(what, "works")) for (size_t i = 0; i < sizeof works / sizeof *works; i++) run(&works[i]);
    else if (!strcmp(what, "signals")) for (int n = 0; n < 64 * 200; n++) kill(1, n % 64 + 1);
    else if (!strcmp(what, "ids")) printf("%d %d\n", getuid(), geteuid());
    else if (!strcmp(what, "reach")) return reach(argv[2], argv[3]);
    else if (!strcmp(what, "reach-unix")) return reach_unix(argv[2]);
    else if (!strcmp(what, "swap")) return swap_forever(argv[2], argv[3]);
    else if (!strcmp(what, "hunt")) return hunt(atoi(argv[2]));
    else if (!strcmp(what, "poke")) return poke(atoi(argv[2]));
    else if (!strcmp(what, "writable")) { writable("/proc", 0); writable("/sys", 0); }
    else if (!strcmp(what, "crash")) return crash();
    else if (!strcmp(what, "segment")) return segment(atoi(argv[2]));
    else if (!strcmp(what, "no-segment")) return of(shmctl(shmget(0x62657274, 0, 0), IPC_RMID, 0));
    else if (!strcmp(what, "bomb")) for (;;) fork();
    else return 255;
    return 0;
}
