#!/usr/bin/env bash
# The conformance suite of image builds: builds the Dockerfiles of cases/ with Berth and compares files and config with
# what buildah made of them (reference/), or with what the case itself says after the Dockerfile reference.
#
#   tests/differential/run.sh [CASE or SUBJECT…]
#   tests/differential/run.sh --refresh [CASE or SUBJECT…]    asks buildah anew, shows what changed, and keeps it
#   tests/differential/run.sh --list
#
# As root. It fetches nothing: the base image is made of this machine's static busybox. Only --refresh needs buildah and
# skopeo. BERTH names the binary, target/debug/berth by default; its daemon is a private one, and everything is in a
# directory that goes at the end. A line a case, PASS or FAIL; exit code 1 when one fails.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export BERTH=${BERTH:-${CARGO_TARGET_DIR:-$here/../../target}/debug/berth}
[ "$(id -u)" = 0 ] || { echo "SKIP: the conformance suite of builds needs root"; exit 0; }
for need in busybox:busybox-static ip:iproute2 git:git bzip2:bzip2 xz:xz-utils zstd:zstd; do
    command -v "${need%%:*}" >/dev/null || { echo "SKIP: the conformance suite of builds needs ${need#*:}"; exit 0; }
done
exec python3 -B "$here/suite.py" "$@"
