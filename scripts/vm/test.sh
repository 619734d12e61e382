#!/usr/bin/env bash
# The tests that need a machine of their own, in a virtual one: cgroup version 2, XFS with project quotas, a stock
# distribution kernel. Emulated where there is no KVM.
#
#   scripts/vm/test.sh [--smoke] [--fresh] [SUITE...]    all suites of scripts/vm/suites, those marked smoke, or these
#   scripts/vm/test.sh --script FILE                     in place of tests a bash script, beside what lies beside it
#
#   --fresh          fetch Debian's present packages in place of those of an earlier run
#   KERNEL           a package of Debian's (linux-image-cloud-amd64), or 6.12 for linux-image-6.12-cloud-amd64
#   BERTH_CACHE      what is kept from run to run (~/.cache/berth): 2 GB
#   BERTH_VM_LIMIT   seconds after which the machine is ended (3600; with --smoke 480)
#   BERTH_VM_TEST    seconds after which one test is ended (300)
#   BERTH_VM_MEMORY  the machine's memory in MiB (4096)
#
# Prints a line PASS:, FAIL: or SKIP: for each test. A machine that hangs, panics or ends early is a failure. Where it
# cannot be made at all, --smoke is skipped, and anything else fails.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
    sed -n '5,6s/^# *//p' "$0" >&2
    exit 2
}

# A part of other tests is skipped where it cannot run. Who asked for the machine is told that there is none.
unable() {
    [ "$ring" != smoke ] || { echo "SKIP: vm: $*" && exit 0; }
    echo "FAIL: vm: $*"
    exit 1
}

ring=full fresh='' script='' limit=3600
while [ $# -gt 0 ]; do
    case $1 in
    --smoke) ring=smoke limit=480 ;;
    --fresh) fresh=yes ;;
    --script) script=$(realpath -e "${2:-}") && shift || usage ;;
    -*) usage ;;
    *) break ;;
    esac
    shift
done
limit=${BERTH_VM_LIMIT:-$limit}
prepare_limit=300
kernel=${KERNEL:-linux-image-cloud-amd64}
case $kernel in [0-9]*) kernel=linux-image-$kernel-cloud-amd64 ;; esac
cache=${BERTH_CACHE:-$HOME/.cache/berth}/vm

[ "$(id -u)" = 0 ] || unable "making the machine's root takes root"
[ "$(uname -m)" = x86_64 ] || unable "it is an x86-64 machine, and this one is $(uname -m)"
for needed in mmdebstrap mke2fs apt-get; do
    command -v "$needed" >/dev/null || [ -x "/usr/sbin/$needed" ] || unable "$needed is missing: scripts/setup.sh vm"
done

# Lays out what the machine runs, and makes a disk of it.
pack() { # SUITE...
    local files="$work/pack" size
    mkdir "$files"
    if [ -n "$script" ]; then
        cp -r "$(dirname "$script")" "$files/given"
        cp "$script" "$files/script"
        touch "$files/places" "$files/run"
    else
        python3 scripts/vm/pack.py "$ring" "$files" "$@"
    fi
    install -m 755 scripts/vm/init.sh "$files/init"
    install -m 755 scripts/vm/cc.sh "$files/cc"
    cp scripts/vm/unfit "$files/"
    case $(accelerator) in tcg*) touch "$files/emulated" ;; esac
    echo "${BERTH_VM_TEST:-300}" >"$files/limit"
    size=$(du -sm "$files" | cut -f1)
    mke2fs -q -t ext4 -E root_owner=0:0 -O ^has_journal -d "$files" "$work/tests.img" $((size * 5 / 4 + 64))M >/dev/null
    rm -rf "$files"
}

# /dev/kvm alone does not say that there is a processor behind it.
accelerator() {
    if grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo && [ -w /dev/kvm ]; then
        echo kvm -cpu host
    else
        echo tcg,thread=multi -cpu max
    fi
}

disk() { # SERIAL FILE OPTIONS
    printf '%s\n' -drive "if=none,id=$1,format=raw,file=$2,$3" -device "virtio-blk-pci,drive=$1,serial=$1"
}

# Becomes QEMU, that of the tree, in namespaces which end with it, as does what is mounted there for it. All of it ends
# with this script, even if that is killed.
machine() {
    local disks
    mapfile -t disks < <(
        disk root /mnt/tree/root.img snapshot=on,cache=unsafe
        disk modules /mnt/kernel/modules.img read-only=on
        disk tests /mnt/work/tests.img read-only=on
        disk xfs /mnt/tree/xfs.img snapshot=on,cache=unsafe
    )
    # shellcheck disable=SC2046 # words
    exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child bash -euc '
        root=$1/root limit=$4
        mount -t tmpfs tmpfs "$root/mnt"
        mkdir "$root"/mnt/{tree,kernel,work}
        mount --bind "$1" "$root/mnt/tree"
        mount --bind "$2" "$root/mnt/kernel"
        mount --bind "$3" "$root/mnt/work"
        mount --bind /dev "$root/dev"
        shift 4
        exec timeout --foreground -k 5 "$limit" chroot "$root" env TMPDIR=/mnt/work qemu-system-x86_64 "$@"' \
        bash "$tree" "$kernel_dir" "$work" "$limit" \
        -M q35 -accel $(accelerator) -smp "$(nproc)" -m "${BERTH_VM_MEMORY:-4096}" \
        -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -kernel /mnt/kernel/vmlinuz -initrd /mnt/kernel/initrd \
        -append "console=ttyS0 quiet loglevel=3 panic=-1 oops=panic mitigations=off random.trust_cpu=on" \
        "${disks[@]}" </dev/null 2>&1
}

said() { # PASS|FAIL|SKIP
    grep -a -c "^$1:" "$work/console" || true
}

# The machine's own sums against what came out: nothing may be lost on the way.
judge() { # EXIT-CODE SECONDS
    local sums end
    sums="$(said PASS) passed, $(said FAIL) failed, $(said SKIP) skipped"
    end=$(sed -n 's/^END: //p' "$work/console")
    if [ "$1" = 124 ] || [ "$1" = 137 ]; then
        echo "FAIL: vm: the machine was not done after $limit s and was ended"
    elif [ -z "$end" ]; then
        echo "FAIL: vm: the machine ended early (QEMU's exit code $1), see what it said last"
    elif [ "$end" != "$sums" ]; then
        echo "FAIL: vm: the machine counted $end, but said $sums"
    else
        echo "vm: $sums, in $2 s"
        [ "$(said FAIL)" = 0 ]
        return
    fi
    return 1
}

vm=''
finish() {
    # An interrupted run must not leave a machine behind.
    [ -z "$vm" ] || kill -KILL "$vm" 2>/dev/null || true
    wait
    rm -rf "$work"
}

work=$(mktemp -d "${TMPDIR:-/var/tmp}/berth-vm.XXXXXX")
trap finish EXIT
trap 'exit 130' INT TERM HUP
[ -z "$fresh" ] || rm -rf "$cache"
# A mirror that does not answer must not hold up other tests.
patience=()
[ "$ring" != smoke ] || patience=(timeout -k 5 "$prepare_limit")
made=$("${patience[@]}" scripts/vm/prepare.sh "$cache" "$kernel") ||
    unable "there is nothing to boot (exit code $?; 124: not made within $prepare_limit s), see above"
{ read -r tree && read -r kernel_dir; } <<<"$made"
pack "$@"
echo "vm: $(sed -n 's/^Package: //p' "$kernel_dir/package") $(sed -n 's/^Version: //p' "$kernel_dir/package")," \
    "packages $(sha256sum "$tree/packages" | cut -c1-12), $(accelerator)"
began=$SECONDS status=0
mkfifo "$work/serial"
sed -u 's/\r$//' <"$work/serial" | tee "$work/console" &
reader=$!
machine >"$work/serial" &
vm=$!
# Waited for in the background, so that a signal is heard at once.
wait "$vm" || status=$?
vm=''
wait "$reader"
judge "$status" $((SECONDS - began))
