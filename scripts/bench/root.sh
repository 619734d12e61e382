#!/usr/bin/env bash
# Makes what `cargo xtask bench trial` runs its peers in: root.sh DIR
#
#   DIR/root           a Debian trixie tree with podman, docker-compose, and Harbor in /opt/harbor
#   DIR/bookworm.tar   the one base image, given to podman and to Berth alike
#
# Packages come from the Debian mirror that this machine's apt uses. Says nothing and does nothing when both are there
# and were made by the present text of this script.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1

say() { printf 'bench: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Prints the mirror that apt takes Debian itself from, nothing if it has none.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }'
}

# A mount namespace of its own: whatever mmdebstrap mounts ends with it.
make_debian() { # SUITE TARGET PACKAGES
    local log="$dir/mmdebstrap.log"
    # shellcheck disable=SC2046 # no mirror, no word
    unshare --mount --pid --fork --kill-child --mount-proc mmdebstrap --mode=root --variant=minbase \
        --include="$3" "$1" "$2" $(mirror) >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "mmdebstrap failed, see above"
    }
}

make_root() {
    local root="$dir/root.new" log="$dir/pip.log"
    say "making a Debian trixie tree with podman (a minute)"
    # catatonit, crun, buildah and the like are what podman recommends; runc is what works on every cgroup layout.
    make_debian trixie "$root" \
        ca-certificates,python3,python3-venv,podman,docker-compose,runc,iptables,nftables,netavark,aardvark-dns,iproute2
    # What outgoing TLS is signed by here may be known to this machine alone.
    [ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
        cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp "$here/install-harbor.sh" "$root/opt/"
    say "installing Harbor in it (a minute)"
    in_root "$root" python3 -m venv /opt/harbor >"$log" 2>&1 &&
        in_root "$root" /opt/install-harbor.sh /opt/harbor 'harbor==0.25.*' >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "Harbor could not be installed, see above"
    }
    # What the installation had to say about itself.
    grep '^NOTE:' "$log" >&2 || true
    mv "$root" "$dir/root"
}

in_root() { # ROOT COMMAND…
    local root=$1
    shift
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
        PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        ${https_proxy:+https_proxy="$https_proxy"} ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
        unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" chroot "$root" "$@"
}

make_base() {
    say "making the base image, Debian bookworm (a minute)"
    make_debian bookworm "$dir/bookworm.new.tar" ca-certificates
    mv "$dir/bookworm.new.tar" "$dir/bookworm.tar"
}

present=$(cat "$0" "$here/install-harbor.sh" | sha256sum | cut -c1-16)
[ "$(cat "$dir/stamp" 2>/dev/null)" != "$present" ] || exit 0

[ "$(id -u)" = 0 ] || die "the peers of the benchmark need root"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: scripts/setup.sh run"
mkdir -p "$dir"
rm -rf "$dir/root" "$dir/root.new" "$dir/bookworm.tar" "$dir/bookworm.new.tar" "$dir/stamp" "$dir/berth"
make_root
make_base
echo "$present" >"$dir/stamp"
