#!/usr/bin/env bash
# Runs a command inside the benchmark's root: enter.sh ROOT BIND… -- COMMAND…, each BIND being SOURCE:TARGET.
#
# The root is entered by pivot_root, since podman cannot mount from within a chroot, and in namespaces of its own: its
# networks, mounts and processes all end when the command does, or when this script is told to end.
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    groups() { find /sys/fs/cgroup -maxdepth 2 -type d -name libpod_parent 2>/dev/null || true; }

    # Control groups outlive namespaces. podman names its own so; those of a podman outside are left alone.
    remove_groups() {
        local group left=
        for group in $(groups); do
            case $before in *" $group "*) continue ;; esac
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
        done
        [ -z "$left" ]
    }

    finish() {
        if [ -n "${child:-}" ]; then
            kill -KILL "$child" 2>/dev/null || true
            wait "$child" 2>/dev/null || true
        fi
        # Processes that were killed take a moment to go.
        for _ in $(seq 50); do
            if remove_groups; then break; fi
            sleep 0.1
        done
    }
    before=" $(groups | tr '\n' ' ')"
    trap finish EXIT
    trap 'exit 143' TERM INT HUP
    # </dev/stdin, because a shell gives what it starts in the background an empty one.
    unshare --mount --net --pid --ipc --uts --fork --kill-child=KILL --propagation private \
        "$0" --inside "$@" </dev/stdin &
    child=$!
    status=0
    wait "$child" || status=$?
    child=
    exit "$status"
fi

shift
root=$1
shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
while [ "$1" != -- ]; do
    source=${1%%:*} target=$root${1#*:}
    if [ -d "$source" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}" && : >"$target"; fi
    mount --bind "$source" "$target"
    shift
done
shift
ip link set lo up
cd "$root"
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
exec env -i PATH=/opt/harbor/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
