#!/usr/bin/env bash
# A sandbox as a full machine: builds tests/machine through Berth and runs tests/machine/checks.sh in it.
#
#   BERTH            the binary to test (default: target/debug/berth)
#   BERTH_TEST_DIR   where images are kept from run to run (default: /var/tmp/berth-test)
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
berth=${BERTH:-$target/debug/berth}
# The directory of the other suite: both begin with the same base image.
data=${BERTH_DATA_DIR:-${BERTH_TEST_DIR:-/var/tmp/berth-test}/suite}
run=$(mktemp -d /tmp/berth-machine.XXXXXX)
daemon=

finish() {
    status=$?
    trap - EXIT
    [ "$status" = 0 ] || tail -n 30 "$run"/*.log
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$run"
    exit "$status"
}
trap finish EXIT

mkdir -p "$data"
export BERTH_HOST="unix://$run/berth.sock"
BERTH_DATA_DIR=$data "$berth" serve 2>>"$run/daemon.log" &
daemon=$!
for _ in $(seq 200); do
    "$berth" version >/dev/null 2>&1 && break
    kill -0 "$daemon" || exit 1
    sleep 0.1
done

"$berth" image ls --json | grep 'library/debian:bookworm"' >/dev/null ||
    "$berth" --quiet image bootstrap debian:bookworm >"$run/bootstrap.log" 2>&1
"$berth" --quiet image build --tag berth-test/machine:latest tests/machine >"$run/build.log" 2>&1
"$berth" sandbox create berth-test/machine:latest --name machine --memory-mb 2048 --cpus 2 >/dev/null
"$berth" sandbox exec machine bash /checks.sh
