#!/usr/bin/env bash
# Installs what is missing on a fresh Debian 12 or later with a Rust toolchain, and nothing else:
#
#   scripts/setup.sh run     what it takes to build Berth and run sandboxes
#   scripts/setup.sh test    that, and what the tests need
#   scripts/setup.sh vm      what it takes to test in a virtual machine. QEMU is not among it: it comes with the
#                            tree that scripts/vm/prepare.sh makes, and no version that is here is touched
#   scripts/setup.sh bench   what it takes to build Berth, and the peers that "cargo xtask bench engine" measures
#
# Says nothing when nothing is missing. Runs as root, since apt-get does. Other distributions: see the lists
# below; with everything in place already, this script never calls apt-get, so it passes there too.
set -euo pipefail
cd "$(dirname "$0")/.."

# Each entry is PACKAGE=PROBE: a command to find, a file (with a slash), or nothing: then dpkg is asked.
run_packages=(
    gcc=cc                          # the linker
    libc6-dev=                      # the C library, its static half included: berth-guest is linked to that
    ca-certificates=/etc/ssl/certs/ca-certificates.crt
    nftables=nft                    # network mode "public"
    btrfs-progs=mkfs.btrfs          # the disk engine that limits storage
    mmdebstrap=mmdebstrap           # "berth image bootstrap"
    debian-archive-keyring=/usr/share/keyrings/debian-archive-keyring.gpg
)
test_packages=(
    git=git                         # cargo xtask layers asks it for the list of files
    docker-registry=docker-registry # a real registry, on loopback
    skopeo=skopeo                   # fills it
    apache2-utils=htpasswd          # gives it passwords
    busybox-static=                 # images without bash, images from scratch
    iproute2=ip                     # a network of its own for the builds' conformance suite
    bzip2=bzip2                     # archives for its ADD, each kind
    xz-utils=xz
    zstd=zstd
    openssh-client=ssh              # the clients of the SSH door; sftp and scp come along
    rsync=rsync                     # another
    python3=python3
    python3-venv=                   # for maturin, see below
)
bench_packages=(
    busybox-static=                 # the image
    podman=podman
    runc=runc
    crun=crun
    bubblewrap=bwrap
    netavark=/usr/lib/podman/netavark # podman's networks, which need iptables too
    iptables=iptables
)
vm_packages=(
    "${run_packages[@]}"
    git=git                         # what of the checkout goes into the machine
    python3=python3
    e2fsprogs=mke2fs                # makes disks of directories
    util-linux=unshare
    binutils=strip
)

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

has() { # PACKAGE PROBE
    case $2 in
    '') [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
    */*) [ -e "$2" ] ;;
    *) command -v "$2" >/dev/null || [ -x "/usr/sbin/$2" ] ;;
    esac
}

missing_of() { # PACKAGE=PROBE...
    local entry
    for entry in "$@"; do
        has "${entry%%=*}" "${entry#*=}" || printf '%s\n' "${entry%%=*}"
    done
}

# A package may start its service when it is installed (docker-registry does). Nobody asked for that, so for the time
# of the installation policy-rc.d forbids it, the way Debian means it to be forbidden. An administrator's own
# policy-rc.d is left alone: it has decided already. And since such a service would still be started at the next
# boot, it is switched off, but only if it was us who brought it.
policy=/usr/sbin/policy-rc.d
forbid_services() {
    [ -e "$policy" ] && return
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

switch_off() { # SERVICE
    command -v systemctl >/dev/null || return 0
    [ ! -d /run/systemd/system ] || systemctl stop "$1" >/dev/null 2>&1 || true
    systemctl disable "$1" >/dev/null 2>&1 || true
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
}

install() { # PACKAGE...
    [ "$(id -u)" = 0 ] || die "missing: $*; run this as root, or install them yourself"
    command -v apt-get >/dev/null || die "missing: $*; this is no Debian: install what corresponds to them"
    say "installing: $*"
    log=$(mktemp)
    forbid_services
    # --no-remove: nothing of the machine's owner may go for ours to come (busybox-static would replace busybox).
    if ! { apt update && apt install --no-install-recommends --no-remove "$@"; }; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get failed, see above"
    fi
    rm -f "$log"
    local package
    for package in "$@"; do
        [ "$package" != docker-registry ] || switch_off docker-registry
    done
}

# busybox and busybox-static exclude each other. Where the owner has chosen the former, tests that need a static
# program skip themselves and say so.
drop_busybox_if_taken() { # PACKAGE...
    local package
    for package in "$@"; do
        if [ "$package" = busybox-static ] && has busybox ''; then
            say "not installing busybox-static: it would replace the busybox package that is here"
        else
            printf '%s\n' "$package"
        fi
    done
}

# maturin makes the Python wheel. Debian has none that is new enough; it lives beside the build's other products.
install_maturin() {
    local tools="${CARGO_TARGET_DIR:-target}/tools" log
    [ ! -x "$tools/bin/maturin" ] || return 0
    say "installing: maturin, in $tools"
    log=$(mktemp)
    if ! { python3 -m venv "$tools" && "$tools/bin/pip" install --quiet 'maturin>=1.9,<2'; } >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "could not install maturin, see above"
    fi
    rm -f "$log"
}

case ${1:-} in
run) wanted=("${run_packages[@]}") ;;
test) wanted=("${run_packages[@]}" "${test_packages[@]}") ;;
bench) wanted=("${run_packages[@]}" "${bench_packages[@]}") ;;
vm) wanted=("${vm_packages[@]}") ;;
*) die "usage: scripts/setup.sh run|test|bench|vm" ;;
esac

command -v cargo >/dev/null || die "no Rust toolchain: see https://rustup.rs"

mapfile -t missing < <(missing_of "${wanted[@]}")
if [ "${#missing[@]}" -gt 0 ]; then
    mapfile -t missing < <(drop_busybox_if_taken "${missing[@]}")
fi
[ "${#missing[@]}" = 0 ] || install "${missing[@]}"
[ "$1" != test ] || install_maturin
