#!/usr/bin/env bash
# Builds the Dockerfiles of cases.py with Berth and with podman, and prints where config or files differ.
#
#   tests/differential/run.sh [--no-reference] [CASE…]
#
# By hand, and as root: it needs the tree with podman that `cargo xtask bench trial` makes by scripts/bench/root.sh (in
# ${BERTH_BENCH_DIR:-/var/tmp/berth-bench}), setcap, and a mirror that Debian's packages come from. What podman made is
# kept in ${BERTH_DIFFERENTIAL_DIR:-/var/tmp/berth-differential} and taken from there with --no-reference. BERTH names
# the binary, target/debug/berth by default; its daemon is a private one.
#
# podman's builder is buildah, which is not BuildKit: cases.py says what is known to differ, and why that is right.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bench=${BERTH_BENCH_DIR:-/var/tmp/berth-bench}
work=${BERTH_DIFFERENTIAL_DIR:-/var/tmp/berth-differential}
export BERTH=${BERTH:-$here/../../target/debug/berth}

[ "$(id -u)" = 0 ] || { echo "run.sh: needs root" >&2; exit 1; }
"$here/../../scripts/bench/root.sh" "$bench"
mkdir -p "$work"
scratch=$(mktemp -d)
export BERTH_HOST=unix://$scratch/socket
"$BERTH" serve --host "$BERTH_HOST" --data-dir "$work/berth" >"$scratch/log" 2>&1 &
daemon=$!
trap 'kill "$daemon"; wait "$daemon" || true; rm -rf "$scratch"' EXIT
for _ in $(seq 100); do
    if "$BERTH" version >/dev/null 2>&1; then break; fi
    kill -0 "$daemon" || { cat "$scratch/log" >&2; exit 1; }
    sleep 0.1
done
python3 -B "$here/compare.py" "$work" "$bench/root" "$work/berth" "$@"
