#!/usr/bin/env bash
# The main job from nothing: builds Berth, makes sure of a base image, and runs one Harbor task twice,
# once with the reference solution (reward 1.0) and once with an agent that does nothing (reward 0.0).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "1/4 set-up: what Berth needs on this machine"
scripts/setup.sh run

say "2/4 build (some minutes the first time, compiling on $(nproc) cores)"
cargo build --release --locked -p berth
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
berth="$target/release/berth"
"$berth" version

say "3/4 base image debian:bookworm"
# No grep -q: it would end at the first match, and the command before it by a broken pipe.
if "$berth" image ls --json | grep 'library/debian:bookworm"' >/dev/null; then
    echo "in the local store"
elif "$berth" image pull debian:bookworm; then
    echo "pulled from the registry"
else
    echo "The registry cannot be reached from here: falling back to a bootstrap from the Debian mirror."
    "$berth" image bootstrap debian:bookworm
fi

say "4/4 the task examples/tasks/square-2, agents oracle and nop"
jobs=${BERTH_DEMO_JOBS:-jobs}
stamp=$(date +%Y-%m-%d__%H-%M-%S)
status=0
"$berth" run examples/tasks/square-2 -a oracle --jobs-dir "$jobs" --job-name "demo-oracle-$stamp" || status=1
"$berth" run examples/tasks/square-2 -a nop --jobs-dir "$jobs" --job-name "demo-nop-$stamp" || status=1

reward() { cat "$jobs/$1"/*/verifier/reward.txt 2>/dev/null || echo "none"; }
oracle=$(reward "demo-oracle-$stamp")
nop=$(reward "demo-nop-$stamp")
printf '\noracle: reward %s (expected 1)\nnop:    reward %s (expected 0)\nresults: %s\n' \
    "$oracle" "$nop" "$(cd "$jobs" && pwd)"
[ "$status" = 0 ] && [ "$oracle" = 1 ] && [ "$nop" = 0 ]
