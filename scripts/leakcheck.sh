#!/usr/bin/env bash
# What did the tests leave behind?
#
#   scripts/leakcheck.sh before    records what there is of Berth's kind on the machine
#   scripts/leakcheck.sh after     names what has been added since, and fails if anything has
#
# The kernel takes some namespaces and cgroups down late, and an embedded daemon ends itself only when idle: "after"
# waits up to BERTH_LEAKCHECK_GRACE seconds (30) for things to go.
set -euo pipefail
cd "$(dirname "$0")/.."

state="${CARGO_TARGET_DIR:-target}/leakcheck.before"
grace=${BERTH_LEAKCHECK_GRACE:-30}

processes() {
    local dir name
    for dir in /proc/[0-9]*; do
        # Processes end while they are counted.
        name=$(cat "$dir/comm" 2>/dev/null) || continue
        case $name in
        berth*) printf 'process %s %s\n' "${dir#/proc/}" "$name" ;;
        esac
    done
}

mounts() {
    awk '/berth/ { print "mount", $2, "(" $3 ")" }' /proc/self/mounts
}

links() {
    local link
    for link in /sys/class/net/bth*; do
        [ ! -e "$link" ] || printf 'network link %s\n' "${link##*/}"
    done
}

# Namespaces that processes are in, and those that are bound to a name.
namespaces() {
    local entry
    for entry in /proc/[0-9]*/ns/net; do
        readlink "$entry" 2>/dev/null || true
    done | sort -u | sed 's/^/network namespace /'
    for entry in /run/netns/*; do
        [ ! -e "$entry" ] || printf 'named network namespace %s\n' "${entry##*/}"
    done
}

# Down to the depth that a sandbox's own sub-groups cannot hide in; both cgroup versions are mounted below.
cgroups() {
    find /sys/fs/cgroup -maxdepth 6 -type d -name 'berth*' -printf 'cgroup %p\n' 2>/dev/null || true
}

loops() {
    local file
    for file in /sys/block/loop*/loop/backing_file; do
        [ ! -e "$file" ] || printf 'loop device %s on %s\n' "$(cut -d/ -f4 <<<"$file")" "$(cat "$file")"
    done
}

tables() {
    PATH=$PATH:/usr/sbin command -v nft >/dev/null || return 0
    { PATH=$PATH:/usr/sbin nft list tables 2>/dev/null || true; } | awk '$3 ~ /^berth_/ { print "nft", $0 }'
}

everything() {
    { processes; mounts; links; namespaces; cgroups; loops; tables; } | sort -u
}

case ${1:-} in
before)
    mkdir -p "$(dirname "$state")"
    everything >"$state"
    ;;
after)
    [ -e "$state" ] || { echo "leakcheck: no record: run scripts/leakcheck.sh before, first" >&2; exit 2; }
    end=$((SECONDS + grace))
    while leaked=$(comm -13 "$state" <(everything)) && [ -n "$leaked" ] && [ "$SECONDS" -lt "$end" ]; do
        sleep 1
    done
    if [ -n "$leaked" ]; then
        sed 's/^/LEAK: /' <<<"$leaked"
        exit 1
    fi
    echo "no process, mount, link, namespace, cgroup, loop device or nft table left behind"
    ;;
*)
    echo "usage: scripts/leakcheck.sh before|after" >&2
    exit 2
    ;;
esac
