#!/bin/bash
# PID 1 of the virtual machine: mounts what a machine has, runs the tests, says what became of each, powers off.
#
# Each test is a process of its own, with a time limit. Each has its say on the console in lines PASS:, FAIL: or SKIP:.
# What a failed test printed follows its line. The last line is END: and the sums: without it, the run was cut off.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb
export RUST_BACKTRACE=0 INSTA_UPDATE=no TMPDIR=/var/tmp
results=/run/vm
unified=/sys/fs/cgroup

machine() { # XFS-DISK
    mount -t tmpfs -o mode=755,nosuid,nodev run /run
    mount -t tmpfs -o nosuid,nodev tmp /tmp
    mkdir -p /dev/pts /dev/shm "$results"
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o nosuid,nodev shm /dev/shm
    ln -sf /proc/self/fd /dev/fd
    mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 "$unified"
    # As systemd leaves it.
    echo '+cpuset +cpu +io +memory +pids' >"$unified/cgroup.subtree_control"
    mkdir "$unified/system.slice"
    echo '+cpuset +cpu +io +memory +pids' >"$unified/system.slice/cgroup.subtree_control"
    hostname vm
    ip link set lo up
    ulimit -n 20000
    # The kernel fetches its other modules itself; /dev/loop-control and /dev/fuse are looked for before.
    modprobe -a loop fuse
    install -m 755 /tests/cc /usr/local/bin/cc
    mkdir -p /vm/xfs && mount -o prjquota "$1" /vm/xfs && export BERTH_TEST_XFS=/vm/xfs
    # Tests know places of the checkout, the first, by their absolute paths.
    local place
    read -r INSTA_WORKSPACE_ROOT </tests/places && export INSTA_WORKSPACE_ROOT
    while read -r place; do
        mkdir -p "$place" && mount --bind "/tests/files$place" "$place"
    done </tests/places
}

# One test; prints a line and, if it failed, what it had printed.
one() { # SUITE GROUP DIRECTORY PROGRAM TEST
    local name="$1 $5" log status start=${EPOCHREALTIME/./} group="" took reason
    reason=$(unfit "$1" "$5")
    if [ -n "$reason" ]; then
        flock "$results/console" printf 'SKIP: %s: under emulation: %s\n' "$name" "$reason"
        return
    fi
    log=$(mktemp "$results/log.XXXXXX")
    if [ "$2" != root ]; then
        group="$unified/system.slice/test-${log##*.}.service"
        mkdir "$group" && setfattr -n trusted.delegate -v 1 "$group"
    fi
    # The shell, and with it all it starts, is put into the group first.
    (
        [ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
        [ "$2" != unit-xfs ] || export BERTH_TEST_DIR="$BERTH_TEST_XFS"
        cd "$3" && exec timeout -k 5 "$limit" "$4" --exact "$5" --nocapture
    ) >"$log" 2>&1 </dev/null
    status=$?
    took="$(((${EPOCHREALTIME/./} - start) / 1000)) ms"
    # Where the test's name is printed before it runs, what it prints first continues that line.
    reason=$(sed -n -E 's/^(test .* \.\.\. )?SKIP: *//p' "$log" | head -n 1)
    {
        if [ "$status" = 124 ] || [ "$status" = 137 ]; then
            printf 'FAIL: %s: not done after %d s\n' "$name" "$limit"
        elif [ "$status" != 0 ]; then
            printf 'FAIL: %s: exit code %d (%s)\n' "$name" "$status" "$took"
        elif ! grep -a -q '^test result: ok\. 1 passed' "$log"; then
            printf 'FAIL: %s: its program ran no such test\n' "$name"
        elif [ -n "$reason" ]; then
            status=skip
            printf 'SKIP: %s: %s\n' "$name" "$reason"
        else
            printf 'PASS: %s (%s)\n' "$name" "$took"
        fi
        case $status in 0 | skip) ;; *) tail -n 60 "$log" | sed 's/^/    | /' ;; esac
    } >"$log.said"
    # Lines of tests side by side must not mix.
    flock "$results/console" cat "$log.said"
    rm -f "$log" "$log.said"
    [ -z "$group" ] || clear_group "$group" "$name"
}

# What is left in the unit's group when its program has ended, systemd kills; so do we.
clear_group() { # GROUP TEST
    local try
    echo 1 >"$1/cgroup.kill"
    for try in 1 2 3 4 5 6 7 8 9 10; do
        find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
        [ -d "$1" ] || return 0
        sleep 0.1
    done
    echo "NOTE: $2: its control group cannot be removed"
}

# Tests that cannot be right on processors that are emulated, with the reason.
unfit() { # SUITE TEST
    [ -e /tests/emulated ] && awk -v suite="$1" -v test="$2" '
        $1 == suite && $2 == test { $1 = $2 = ""; sub(/^ */, ""); print; exit }' /tests/unfit
}

suite() { # NAME GROUP DIRECTORY PROGRAM PATTERN
    local listed
    if ! listed=$(cd "$3" && "$4" --list --format terse 2>&1); then
        printf 'FAIL: %s: its program cannot tell its tests\n%s\n' "$1" "$listed"
        return
    fi
    # It measures at length how to do its sums when it is loaded, and the first daemons would seem not to answer.
    case $3 in */bin/berth) modprobe btrfs ;; esac
    # Those marked #[ignore] are helpers of others.
    listed=$(comm -13 <(cd "$3" && "$4" --list --ignored --format terse | sort) <(sort <<<"$listed") |
        sed -n 's/: test$//p' | grep -E "$5")
    # A list that goes by a name which is gone would run nothing and be content.
    if [ -z "$listed" ]; then
        printf 'FAIL: %s: it has no test that matches %s\n' "$1" "$5"
        return
    fi
    xargs -d '\n' -P "$(nproc)" -n 1 bash /tests/init one "$1" "$2" "$3" "$4" <<<"$listed"
}

all() {
    [ ! -e /tests/script ] || script
    local name group dir program pattern
    while IFS=$'\t' read -r name group dir program pattern; do
        echo "SUITE: $name, after $SECONDS s"
        suite "$name" "$group" "$dir" "$program" "$pattern" </dev/null
    done </tests/run
}

# In place of tests: a script of the user's.
script() {
    local status=0
    cp -r /tests/given /tmp/given
    (cd /tmp/given && bash /tests/script) || status=$?
    if [ "$status" = 0 ]; then echo "PASS: script"; else echo "FAIL: script: exit code $status"; fi
}

if [ "$$" != 1 ]; then
    "$@"
    exit
fi
exec </dev/null >/dev/console 2>&1
read -r limit </tests/limit
export limit
machine "$1"
echo "BEGIN: Linux $(uname -r), $(nproc) processors, $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB, up in $(cut -d' ' -f1 /proc/uptime) s"
all | tee "$results/said"
dmesg --level=emerg,alert,crit,err,warn --notime 2>/dev/null | grep -E 'BUG:|WARNING:|Oops|hung task|blocked for more' | sed 's/^/NOTE: kernel: /'
echo "END: $(grep -a -c '^PASS:' "$results/said") passed, $(grep -a -c '^FAIL:' "$results/said") failed, $(grep -a -c '^SKIP:' "$results/said") skipped"
sync
poweroff -f 2>/dev/null || busybox poweroff -f
