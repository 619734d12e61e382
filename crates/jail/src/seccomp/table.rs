//! The rules of the default filter, as data: every system call that Berth knows is in exactly one group, with the
//! reason. What is in none is newer than this table, and absent for the sandbox.
//!
//! The choice is Docker's default profile with Docker's default capabilities, which images are built and tested
//! against. It differs where a reason says so: `unshare` without namespaces, the NUMA calls and `kcmp` are allowed;
//! rare socket families and `modify_ldt` are not.

use linux_raw_sys::general::*;

use super::{Argument, Call, Condition, Group, Verdict};

/// Names and numbers of calls, from the kernel headers' constants.
macro_rules! calls {
    [$($call:ident)*] => { &[$(Call { constant: stringify!($call), number: $call }),*] };
}

/// As `calls`, of those that only x86-64 has: newer architectures never had them.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_64 {
    [$($call:ident)*] => { calls![$($call)*] };
}
#[cfg(not(target_arch = "x86_64"))]
macro_rules! x86_64 {
    [$($call:ident)*] => { &[] };
}

/// What is decided by the call alone.
pub(super) const GROUPS: &[Group] = &[
    Group {
        why: "reading and writing files, and waiting for them",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_read __NR_write __NR_readv __NR_writev __NR_pread64 __NR_pwrite64 __NR_preadv __NR_pwritev
            __NR_preadv2 __NR_pwritev2 __NR_lseek __NR_close __NR_close_range __NR_dup __NR_dup3 __NR_fcntl
            __NR_flock __NR_ioctl __NR_openat __NR_openat2 __NR_truncate __NR_ftruncate __NR_fallocate
            __NR_fadvise64 __NR_readahead __NR_sync __NR_syncfs __NR_fsync __NR_fdatasync
            __NR_sync_file_range __NR_copy_file_range __NR_sendfile __NR_splice __NR_tee __NR_vmsplice
            __NR_cachestat __NR_pselect6 __NR_ppoll __NR_epoll_create1 __NR_epoll_ctl __NR_epoll_pwait
            __NR_epoll_pwait2 __NR_eventfd2 __NR_signalfd4 __NR_inotify_init1 __NR_inotify_add_watch
            __NR_inotify_rm_watch __NR_pipe2 __NR_memfd_create __NR_memfd_secret
        ],
        x86_64: x86_64![
            __NR_dup2 __NR_open __NR_creat __NR_select __NR_poll __NR_epoll_create __NR_epoll_wait
            __NR_eventfd __NR_signalfd __NR_inotify_init __NR_pipe
        ],
    },
    Group {
        why: "names, metadata and attributes of files",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_fstat __NR_newfstatat __NR_statx __NR_statfs __NR_fstatfs __NR_faccessat __NR_faccessat2
            __NR_fchmod __NR_fchmodat __NR_fchmodat2 __NR_fchown __NR_fchownat __NR_umask __NR_utimensat
            __NR_mkdirat __NR_unlinkat __NR_renameat __NR_renameat2 __NR_linkat __NR_symlinkat
            __NR_readlinkat __NR_mknodat __NR_getdents64 __NR_getcwd __NR_chdir __NR_fchdir __NR_setxattr
            __NR_lsetxattr __NR_fsetxattr __NR_setxattrat __NR_getxattr __NR_lgetxattr __NR_fgetxattr
            __NR_getxattrat __NR_listxattr __NR_llistxattr __NR_flistxattr __NR_listxattrat
            __NR_removexattr __NR_lremovexattr __NR_fremovexattr __NR_removexattrat __NR_file_getattr
            __NR_name_to_handle_at
        ],
        x86_64: x86_64![
            __NR_stat __NR_lstat __NR_access __NR_chmod __NR_chown __NR_lchown __NR_utime __NR_utimes
            __NR_futimesat __NR_mkdir __NR_rmdir __NR_unlink __NR_rename __NR_link __NR_symlink
            __NR_readlink __NR_mknod __NR_getdents
        ],
    },
    Group {
        why: "package managers and sshd change their root; the capability decides",
        verdict: Verdict::Allow,
        calls: calls![__NR_chroot],
        x86_64: x86_64![],
    },
    Group {
        why: "a list of the own mounts, as /proc/self/mountinfo gives it",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_statmount __NR_listmount
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "the own address space",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_brk __NR_mmap __NR_munmap __NR_mremap __NR_mprotect __NR_madvise __NR_mincore __NR_msync
            __NR_mlock __NR_mlock2 __NR_mlockall __NR_munlock __NR_munlockall __NR_remap_file_pages
            __NR_membarrier __NR_pkey_alloc __NR_pkey_free __NR_pkey_mprotect __NR_map_shadow_stack
            __NR_mseal
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "databases and numerical libraries place their own memory",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_get_mempolicy __NR_set_mempolicy __NR_set_mempolicy_home_node __NR_mbind
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "processes, threads and their signals; `clone` without namespaces, see ARGUMENTS",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_clone __NR_execve __NR_execveat __NR_exit __NR_exit_group __NR_wait4 __NR_waitid
            __NR_getpid __NR_getppid __NR_gettid __NR_set_tid_address __NR_kill __NR_tkill __NR_tgkill
            __NR_pidfd_open __NR_pidfd_send_signal __NR_process_mrelease __NR_rt_sigaction
            __NR_rt_sigprocmask __NR_rt_sigpending __NR_rt_sigqueueinfo __NR_rt_tgsigqueueinfo
            __NR_rt_sigreturn __NR_rt_sigsuspend __NR_rt_sigtimedwait __NR_sigaltstack __NR_restart_syscall
            __NR_getpgid __NR_setpgid __NR_getsid __NR_setsid __NR_prctl __NR_set_robust_list
            __NR_get_robust_list __NR_rseq __NR_futex __NR_futex_waitv __NR_futex_wake __NR_futex_wait
            __NR_futex_requeue __NR_personality __NR_unshare
        ],
        x86_64: x86_64![
            __NR_fork __NR_vfork __NR_pause __NR_getpgrp __NR_arch_prctl __NR_set_thread_area
            __NR_get_thread_area __NR_uretprobe
        ],
    },
    Group {
        why: "gdb and strace; harmless to the filter since Linux 4.8, and bound to the rules of ptrace(2), which keep PID 1 out",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_ptrace __NR_process_vm_readv __NR_process_vm_writev __NR_process_madvise __NR_kcmp
            __NR_pidfd_getfd
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "users, groups and capabilities: sudo, su, sshd and cron change them",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_getuid __NR_geteuid __NR_getgid __NR_getegid __NR_getresuid __NR_getresgid __NR_getgroups
            __NR_setuid __NR_setgid __NR_setreuid __NR_setregid __NR_setresuid __NR_setresgid __NR_setfsuid
            __NR_setfsgid __NR_setgroups __NR_capget __NR_capset
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "priorities and limits, which only ever go down without a capability",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_getrlimit __NR_setrlimit __NR_prlimit64 __NR_getrusage __NR_getpriority __NR_setpriority
            __NR_ioprio_get __NR_ioprio_set __NR_sched_yield __NR_sched_getaffinity __NR_sched_setaffinity
            __NR_sched_getattr __NR_sched_setattr __NR_sched_getparam __NR_sched_setparam
            __NR_sched_getscheduler __NR_sched_setscheduler __NR_sched_get_priority_max
            __NR_sched_get_priority_min __NR_sched_rr_get_interval __NR_getcpu __NR_times __NR_sysinfo
            __NR_uname
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "reading clocks, timers; `adjtimex` only reads without a capability",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_gettimeofday __NR_clock_gettime __NR_clock_getres __NR_clock_nanosleep __NR_nanosleep
            __NR_getitimer __NR_setitimer __NR_timer_create __NR_timer_delete __NR_timer_getoverrun
            __NR_timer_gettime __NR_timer_settime __NR_timerfd_create __NR_timerfd_gettime
            __NR_timerfd_settime __NR_adjtimex __NR_clock_adjtime __NR_getrandom
        ],
        x86_64: x86_64![
            __NR_time __NR_alarm
        ],
    },
    Group {
        why: "sockets of the families in ARGUMENTS",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_socket __NR_socketpair __NR_bind __NR_connect __NR_listen __NR_accept __NR_accept4
            __NR_getsockname __NR_getpeername __NR_getsockopt __NR_setsockopt __NR_sendto __NR_sendmsg
            __NR_sendmmsg __NR_recvfrom __NR_recvmsg __NR_recvmmsg __NR_shutdown
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "System V and POSIX message passing inside the own ipc namespace: PostgreSQL needs it",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_shmget __NR_shmat __NR_shmctl __NR_shmdt __NR_semget __NR_semop __NR_semctl
            __NR_semtimedop __NR_msgget __NR_msgsnd __NR_msgrcv __NR_msgctl __NR_mq_open __NR_mq_unlink
            __NR_mq_timedsend __NR_mq_timedreceive __NR_mq_notify __NR_mq_getsetattr
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "the old asynchronous I/O, which databases still use",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_io_setup __NR_io_destroy __NR_io_submit __NR_io_cancel __NR_io_getevents
            __NR_io_pgetevents
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "programs that confine themselves further",
        verdict: Verdict::Allow,
        calls: calls![
            __NR_seccomp __NR_landlock_create_ruleset __NR_landlock_add_rule __NR_landlock_restrict_self
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "a mount can cover or expose anything, and the mount calls parse what an image brings",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_mount __NR_umount2 __NR_pivot_root __NR_fsopen __NR_fsconfig __NR_fsmount __NR_fspick
            __NR_move_mount __NR_open_tree __NR_open_tree_attr __NR_mount_setattr
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "new namespaces give back the capabilities that were dropped (unshare and clone: see ARGUMENTS)",
        verdict: Verdict::Refuse,
        calls: calls![__NR_setns],
        x86_64: x86_64![],
    },
    Group {
        why: "opens files by number anywhere on a file system, around every mount: the first container escape that became famous",
        verdict: Verdict::Refuse,
        calls: calls![__NR_open_by_handle_at],
        x86_64: x86_64![],
    },
    Group {
        why: "replaces or extends the running kernel",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_init_module __NR_finit_module __NR_delete_module __NR_kexec_load __NR_kexec_file_load
        ],
        x86_64: x86_64![
            __NR_create_module __NR_get_kernel_syms __NR_query_module
        ],
    },
    Group {
        why: "programs and events inside the kernel, for all of the machine",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_bpf __NR_perf_event_open __NR_lookup_dcookie __NR_fanotify_init __NR_fanotify_mark
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "does the work of other calls where no filter sees it, and has had many holes of its own; libraries fall back",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_io_uring_setup __NR_io_uring_enter __NR_io_uring_register
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "holds the kernel in the middle of a copy: what makes races winnable",
        verdict: Verdict::Refuse,
        calls: calls![__NR_userfaultfd],
        x86_64: x86_64![],
    },
    Group {
        why: "keys are not in any namespace: user 0 of all sandboxes would share them",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_keyctl __NR_add_key __NR_request_key
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "switches of the whole machine: power, swap, accounting, quota, ports, clock, log, names",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_reboot __NR_swapon __NR_swapoff __NR_acct __NR_quotactl __NR_quotactl_fd __NR_settimeofday
            __NR_clock_settime __NR_syslog __NR_vhangup __NR_sethostname __NR_setdomainname __NR_nfsservctl
        ],
        x86_64: x86_64![
            __NR_iopl __NR_ioperm
        ],
    },
    Group {
        why: "moves pages of other processes between nodes",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_migrate_pages __NR_move_pages
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "nothing written in this century needs them; `modify_ldt` only 32-bit programs, which are refused",
        verdict: Verdict::Refuse,
        calls: calls![],
        x86_64: x86_64![
            __NR_modify_ldt __NR_uselib __NR_ustat __NR_sysfs __NR__sysctl __NR_getpmsg __NR_putpmsg
            __NR_afs_syscall __NR_tuxcall __NR_security __NR_vserver __NR_epoll_ctl_old __NR_epoll_wait_old
        ],
    },
    Group {
        why: "attributes of security modules are the host administrator's business",
        verdict: Verdict::Refuse,
        calls: calls![
            __NR_lsm_get_self_attr __NR_lsm_set_self_attr __NR_lsm_list_modules
        ],
        x86_64: x86_64![],
    },
    Group {
        why: "its flags are in memory, where no filter sees them; C libraries fall back to `clone`",
        verdict: Verdict::Absent,
        calls: calls![__NR_clone3],
        x86_64: x86_64![],
    },
    Group {
        why: "sets project ids too, as the ioctl in ARGUMENTS",
        verdict: Verdict::Refuse,
        calls: calls![__NR_file_setattr],
        x86_64: x86_64![],
    },
];

/// What makes a call of an allowed group refused. All that is looked at is in registers: memory could change between
/// the look and the use.
pub(super) const ARGUMENTS: &[Argument] = &[
    Argument {
        why: "new namespaces give back the capabilities that were dropped",
        call: __NR_clone,
        index: 0,
        refused: Condition::AnyBit(NAMESPACES),
        errno: EPERM,
    },
    Argument {
        why: "as clone; without namespaces it only stops sharing files or directories with other threads",
        call: __NR_unshare,
        index: 0,
        refused: Condition::AnyBit(NAMESPACES | CLONE_NEWTIME),
        errno: EPERM,
    },
    Argument {
        why: "puts input into a terminal as if it were typed: commands for whoever holds its other end",
        call: __NR_ioctl,
        index: 1,
        refused: Condition::OneOf(&[TIOCSTI, TIOCLINUX]),
        errno: EPERM,
    },
    Argument {
        why: "changes whose quota counts: a subvolume, which any user may make where the root is a directory of btrfs \
              itself (an image without layers), has none; a project id, which root may set without a user namespace, \
              is that of another limit",
        call: __NR_ioctl,
        index: 1,
        refused: Condition::OneOf(&[
            BTRFS_IOC_SUBVOL_CREATE,
            BTRFS_IOC_SUBVOL_CREATE_V2,
            BTRFS_IOC_SNAP_CREATE,
            BTRFS_IOC_SNAP_CREATE_V2,
            FS_IOC_FSSETXATTR,
        ]),
        errno: EPERM,
    },
    Argument {
        why: "the rest turns off protections of memory, or emulates other systems",
        call: __NR_personality,
        index: 0,
        refused: Condition::NoneOf(PERSONALITIES),
        errno: EPERM,
    },
    Argument {
        why: "every other family is a module of its own that few have looked at; AF_VSOCK reaches the host, AF_ALG the \
              kernel's cryptography",
        call: __NR_socket,
        index: 0,
        refused: Condition::NoneOf(FAMILIES),
        errno: EAFNOSUPPORT,
    },
    Argument {
        why: "as socket",
        call: __NR_socketpair,
        index: 0,
        refused: Condition::NoneOf(FAMILIES),
        errno: EAFNOSUPPORT,
    },
    Argument {
        why: "a limit of CPU time on the guest kills it, and the trial would look like a failure of the machine",
        call: __NR_prlimit64,
        index: 0,
        refused: GUEST,
        errno: EPERM,
    },
    Argument {
        why: "the guest keeps time limits and must get to run",
        call: __NR_sched_setscheduler,
        index: 0,
        refused: GUEST,
        errno: EPERM,
    },
    Argument {
        why: "the guest keeps time limits and must get to run",
        call: __NR_sched_setparam,
        index: 0,
        refused: GUEST,
        errno: EPERM,
    },
    Argument {
        why: "the guest keeps time limits and must get to run",
        call: __NR_sched_setattr,
        index: 0,
        refused: GUEST,
        errno: EPERM,
    },
    Argument {
        why: "the guest keeps time limits and must get to run",
        call: __NR_sched_setaffinity,
        index: 0,
        refused: GUEST,
        errno: EPERM,
    },
    Argument { why: "as sched_setscheduler", call: __NR_setpriority, index: 1, refused: GUEST, errno: EPERM },
    Argument {
        why: "the guest is among the processes of user 0",
        call: __NR_setpriority,
        index: 0,
        refused: Condition::OneOf(&[PRIO_USER]),
        errno: EPERM,
    },
];

/// The same, where the sandbox has no user namespace of its own.
pub(super) const WITHOUT_USER_NAMESPACE: &[Argument] = &[Argument {
    why: "takes a directory's flag away by which what is made in it belongs to the sandbox's project, and so to its \
          limit of disk; in a user namespace the kernel refuses that itself",
    call: __NR_ioctl,
    index: 1,
    refused: Condition::OneOf(&[FS_IOC_SETFLAGS]),
    errno: EPERM,
}];

/// The guest: no other process can be number 1, since there are no new pid namespaces. Root in a sandbox is its user, so
/// nothing else is in the way.
const GUEST: Condition = Condition::OneOf(&[1]);
/// `linux/resource.h`.
const PRIO_USER: u32 = 2;

/// `asm-generic/errno-base.h`.
const EPERM: u32 = 1;
/// `asm-generic/errno.h`; what a kernel without the family would answer, so that programs go on without it.
const EAFNOSUPPORT: u32 = 97;

const NAMESPACES: u32 =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

/// `asm-generic/ioctls.h`; the same on all architectures here.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// `linux/btrfs.h`.
const BTRFS_IOC_SNAP_CREATE: u32 = 0x5000_9401;
const BTRFS_IOC_SUBVOL_CREATE: u32 = 0x5000_940e;
const BTRFS_IOC_SNAP_CREATE_V2: u32 = 0x5000_9417;
const BTRFS_IOC_SUBVOL_CREATE_V2: u32 = 0x5000_9418;
/// `linux/fs.h`; the same on all architectures here.
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;

/// `linux/personality.h`: Linux itself, `PER_LINUX32`, `UNAME26`, both, `ADDR_NO_RANDOMIZE` (gdb, `setarch -R`) with
/// either, and the question for the current one.
const PERSONALITIES: &[u32] = &[0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0x4_0008, u32::MAX];

/// `linux/socket.h`: unspecified, UNIX, INET, INET6, NETLINK, and PACKET (which needs a capability that sandboxes have
/// in their own network only).
const FAMILIES: &[u32] = &[0, 1, 2, 10, 16, 17];
