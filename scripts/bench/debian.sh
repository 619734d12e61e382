#!/usr/bin/env bash
# Makes the base image of `cargo xtask bench builds`, a tar of Debian bookworm: debian.sh DIR
#
# It becomes DIR/bookworm-base.tar, from the Debian mirror that this machine's apt uses. Does nothing when it is there.
set -euo pipefail
dir=$1

die() {
    printf 'bench: %s\n' "$*" >&2
    exit 1
}

[ ! -e "$dir/bookworm-base.tar" ] || exit 0
[ "$(id -u)" = 0 ] || die "the base image of the benchmark needs root"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: scripts/setup.sh run"
mkdir -p "$dir"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
printf 'bench: making the base image, Debian bookworm (a minute)\n' >&2
# A mount namespace of its own: whatever mmdebstrap mounts ends with it.
# shellcheck disable=SC2086 # no mirror, no word
unshare --mount --pid --fork --kill-child --mount-proc mmdebstrap --mode=root --variant=minbase \
    --include=ca-certificates bookworm "$dir/bookworm-base.new.tar" $mirror >"$dir/mmdebstrap.log" 2>&1 || {
    tail -n 20 "$dir/mmdebstrap.log" >&2
    die "mmdebstrap failed, see above"
}
mv "$dir/bookworm-base.new.tar" "$dir/bookworm-base.tar"
