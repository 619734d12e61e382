#!/usr/bin/env bash
# Makes what the virtual machine boots from, once, below a cache directory: prepare.sh CACHE KERNEL-PACKAGE
#
#   tree-<hash>/        a Debian tree: the machine's root, and QEMU and the tools that make the rest (nothing is
#     root/ root.img    installed on the host); root.img is the same as a disk
#     xfs.img           an empty XFS
#     packages          its packages and their versions
#   kernel-<hash>/      the kernel, its modules as a disk, and a first stage that finds the disks
#     vmlinuz initrd modules.img release package
#
# The hashes are of what goes in: this text, the list of packages, the kernel's package. Versions are the mirror's on
# the day: they are written down and printed with every run, and --fresh of test.sh fetches them anew. With both
# there, nothing is asked of any mirror. Prints the two directories, a line each.
#
# Packages come from the Debian mirrors that this machine's apt uses.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "$0")" && pwd)
cache=$1 kernel=$2

suite=bookworm
packages=(
    qemu-system-x86 cpio kmod busybox-static          # the host's side
    gcc libc6-dev                                     # tests compile small static programs
    nftables iproute2 procps attr ca-certificates     # what Berth and its tests call
    xfsprogs btrfs-progs e2fsprogs
)

say() { printf 'vm: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Prints the lines of a source list: Debian itself and its security updates, as this machine's apt knows them.
sources() {
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" '
            $2 != "Debian" || seen[$3]++ { next }
            $3 == "Debian" { print "deb", $1, suite, "main" }
            $3 == "Debian-Security" { print "deb", $1, suite "-security", "main" }'
}

# Runs a command in a tree, with the cache directory at /mnt there, in namespaces of its own: whatever is mounted or
# started ends with it.
in_tree() { # TREE COMMAND...
    local root=$1/root
    shift
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        ${http_proxy:+http_proxy="$http_proxy"} \
        unshare --mount --pid --fork --kill-child bash -c '
            root=$1 cache=$2
            shift 2
            mount -t proc proc "$root/proc"
            mount --bind /dev "$root/dev"
            mount --bind "$cache" "$root/mnt"
            exec chroot "$root" "$@"' bash "$root" "$cache" "$@"
}

make_tree() { # DIR
    local dir=$1 log=$1/log list
    list=$(IFS=, && echo "${packages[*]}")
    mapfile -t lines < <(sources)
    [ "${#lines[@]}" -gt 0 ] || die "this machine's apt has no Debian mirror to make the virtual machine from"
    say "making a Debian tree with QEMU and what tests need (a minute or two)"
    unshare --mount --pid --fork --kill-child --mount-proc mmdebstrap --mode=root --variant=minbase \
        --include="$list" --aptopt='APT::Install-Recommends "false"' "$suite" "$dir/root" "${lines[@]}" \
        >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "mmdebstrap failed, see above"
    }
    chroot "$dir/root" dpkg-query -W -f '${Package} ${Version}\n' >"$dir/packages"
    mkdir -p "$dir/root/tests" "$dir/root/vm"
    # The guest has no network but its own.
    rm -f "$dir/root/etc/resolv.conf"
    printf 'nameserver 127.0.0.1\n' >"$dir/root/etc/resolv.conf"
    printf '127.0.0.1 localhost\n' >"$dir/root/etc/hosts"
    echo vm >"$dir/root/etc/hostname"
    image "$dir/root.img" "$dir/root" 6G
    truncate -s 8G "$dir/xfs.img"
    in_tree "$dir" mkfs.xfs -q -m reflink=1 "/mnt/${dir##*/}/xfs.img"
}

# A disk with an ext4 that has a directory's content; the file is sparse.
image() { # FILE DIR SIZE
    mke2fs -q -t ext4 -E root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1 -d "$2" "$1" "$3" >/dev/null
}

make_kernel() { # DIR TREE
    local dir=$1 tree=$2 release
    say "fetching the kernel of $kernel"
    cp -L /etc/resolv.conf "$tree/root/etc/resolv.conf"
    in_tree "$tree" bash -euc '
        cd "/mnt/$1"
        apt-get -q -o APT::Sandbox::User=root update
        # A name without a version is that of an empty package which depends on the real one.
        real=$(apt-cache depends "$2" | sed -n "s/^ *Depends: \(linux-image-[^ ]*\)$/\1/p" | head -n 1)
        apt-get -q -o APT::Sandbox::User=root download "${real:-$2}"
        dpkg-deb -f ./*.deb Package Version >package
        dpkg-deb -x ./*.deb files
        rm ./*.deb' bash "${dir##*/}" "$kernel" >"$dir/log" 2>&1 || {
        tail -n 20 "$dir/log" >&2
        die "the kernel $kernel cannot be had, see above"
    }
    release=$(ls "$dir/files/lib/modules")
    in_tree "$tree" depmod -b "/mnt/${dir##*/}/files" "$release"
    echo "$release" >"$dir/release"
    mv "$dir/files/boot/vmlinuz-$release" "$dir/vmlinuz"
    make_initrd "$dir" "$tree" "$release"
    image "$dir/modules.img" "$dir/files/lib/modules/$release" 512M
    rm -rf "$dir/files"
}

# The first stage: busybox, and the modules that the disks need.
make_initrd() { # DIR TREE RELEASE
    local stage=$1/stage path
    mkdir -p "$stage"/{bin,dev,proc,sys,root,modules}
    cp "$2/root/bin/busybox" "$stage/bin/"
    cp "$here/first-stage.sh" "$stage/init"
    chmod 755 "$stage/init"
    echo "$3" >"$stage/release"
    in_tree "$2" modprobe -d "/mnt/${1##*/}/files" -S "$3" --show-depends -a virtio_mmio virtio_pci virtio_blk ext4 |
        awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
        while read -r path; do
            cp "$cache/${path#/mnt/}" "$stage/modules/"
            case $path in *.xz) xz -d "$stage/modules/${path##*/}" && path=${path%.xz} ;; esac
            echo "${path##*/}"
        done >"$stage/modules/order"
    in_tree "$2" sh -c 'cd "/mnt/$1/stage" && find . | cpio -o -H newc --quiet >../initrd' sh "${1##*/}"
    rm -rf "$stage"
}

# Made aside and moved into place when whole; one at a time.
made() { # PREFIX HASHED COMMAND...
    local dir
    dir="$cache/$1-$(printf %s "$2" | sha256sum | cut -c1-16)"
    shift 2
    if [ ! -d "$dir" ]; then
        rm -rf "$dir.new"
        mkdir "$dir.new"
        "$1" "$dir.new" "${@:2}"
        mv "$dir.new" "$dir"
    fi
    echo "$dir"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
text=$(cat "$0")
tree=$(made tree "$text" make_tree)
echo "$tree"
made kernel "$text$(cat "$here/first-stage.sh")$kernel" make_kernel "$tree"
