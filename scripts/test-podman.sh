#!/usr/bin/env bash
# The conformance suite against podman as the reference: those of its tests that need no more than exec and cp.
#
#   PYTHON           a Python of at least 3.12 with httpx, pytest and pytest-asyncio (default: python3)
#   ROOTFS           a tar of a Debian root file system (default: made by mmdebstrap)
#   BERTH_TEST_DIR   where that tar is kept from run to run (default: /var/tmp/berth-test)
#
# Tests that podman is known to fail, and why: tests/conformance/differences.py. They must fail.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "SKIP: $*"
    exit 0
}

[ "$(id -u)" = 0 ] || skip "podman as root is the reference, and this is not root"
command -v podman >/dev/null || skip "there is no podman here"
command -v runc >/dev/null || skip "there is no runc here"
python=${PYTHON:-python3}
"$python" -c 'import sys, httpx, pytest, pytest_asyncio; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
    skip "$python is no Python 3.12 with httpx, pytest and pytest-asyncio (PYTHON)"

base=${BERTH_TEST_DIR:-/var/tmp/berth-test}
rootfs=${ROOTFS:-$base/bookworm.tar}
if [ ! -s "$rootfs" ]; then
    command -v mmdebstrap >/dev/null || skip "there is no root file system (ROOTFS), and no mmdebstrap to make one"
    mkdir -p "$base"
    mmdebstrap --quiet --variant=minbase bookworm "$rootfs.new.tar"
    mv "$rootfs.new.tar" "$rootfs"
fi

run=$(mktemp -d /tmp/berth-podman.XXXXXX)
podman="podman --root $run/root --runroot $run/run --storage-driver vfs --cgroup-manager cgroupfs --events-backend none --runtime runc"
finish() {
    # shellcheck disable=SC2086 # a command and its flags
    $podman rm --all --force --time 0 >/dev/null 2>&1 || true
    umount "$run/root/vfs" 2>/dev/null || true
    rm -rf "$run"
}
trap finish EXIT

# shellcheck disable=SC2086
$podman import --quiet "$rootfs" localhost/debian:bookworm >/dev/null
BERTH_TEST_PODMAN=$podman BERTH_TEST_IMAGE=localhost/debian:bookworm PYTHONPATH=python PYTHONDONTWRITEBYTECODE=1 \
    "$python" -m pytest -rsxX --no-header -p no:cacheprovider tests/conformance "$@"
