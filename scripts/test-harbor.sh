#!/usr/bin/env bash
# Real Harbor against a real daemon, by Berth's own means: Harbor's Python lives in an image that Berth bootstraps and
# builds, and runs in a Berth sandbox that has the daemon's socket.
#
#   BERTH            the binary to test (default: target/debug/berth)
#   BERTH_TEST_DIR   where images are kept from run to run (default: /var/tmp/berth-test)
#   BERTH_DATA_DIR   the daemon's data directory (default: $BERTH_TEST_DIR/harbor)
#
# Further arguments go to pytest, for example: scripts/test-harbor.sh -k square
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
berth=${BERTH:-$target/debug/berth}
base=${BERTH_TEST_DIR:-/var/tmp/berth-test}
data=${BERTH_DATA_DIR:-$base/harbor}
run=$(mktemp -d /tmp/berth-harbor.XXXXXX)
box="harbor-suite-$$"
daemons=()

say() { printf '\n== %s\n' "$*"; }

finish() {
    status=$?
    trap - EXIT
    if [ "$status" != 0 ]; then
        for log in "$run"/*.log; do
            [ -e "$log" ] && printf '\n-- end of %s\n' "${log##*/}" && tail -n 30 "$log"
        done
    fi
    "$berth" --quiet sandbox rm "$box" 2>/dev/null || true
    for pid in "${daemons[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${daemons[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$run"
    exit "$status"
}
trap finish EXIT

# serve NAME DATA_DIR: starts a daemon on $run/host/NAME.sock and waits until it answers; its pid is in $served.
serve() {
    BERTH_HOST="unix://$run/host/$1.sock" BERTH_DATA_DIR="$2" "$berth" serve 2>>"$run/$1.log" &
    served=$!
    daemons+=("$served")
    for _ in $(seq 200); do
        if BERTH_HOST="unix://$run/host/$1.sock" "$berth" version >/dev/null 2>&1; then
            return
        fi
        kill -0 "$served" 2>/dev/null || break
        sleep 0.1
    done
    echo "the daemon $1 does not answer" >&2
    exit 1
}

# inside COMMAND…: runs a command in the suite's sandbox.
inside() { "$berth" sandbox exec "$box" --cwd /suite --env PYTHONDONTWRITEBYTECODE=1 "$@"; }

say "1/5 daemon"
[ -x "$berth" ] || { echo "$berth is not there: cargo build -p berth" >&2; exit 1; }
mkdir -p "$run/host" "$data"
export BERTH_HOST="unix://$run/host/berth.sock"
unset BERTH_DATA_DIR
serve berth "$data"
"$berth" version

say "2/5 base images"
for suite in trixie bookworm; do
    if "$berth" image ls --json | grep -q "library/debian:$suite\""; then
        echo "debian:$suite is in the store"
    else
        "$berth" image bootstrap "debian:$suite"
    fi
done

say "3/5 wheel"
venv=$target/maturin
[ -x "$venv/bin/maturin" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet 'maturin>=1.9,<2'; }
context=$run/context
mkdir -p "$context/ca" "$context/wheel"
"$venv/bin/maturin" build --profile dev --compatibility linux --out "$context/wheel" ${CI:+--quiet}
ls "$context/wheel"

say "4/5 image with Harbor"
cp tests/harbor/Dockerfile tests/harbor/install-harbor.sh "$context/"
cp /etc/ssl/certs/ca-certificates.crt "$context/ca/" 2>/dev/null || touch "$context/ca/none"
"$berth" image build --tag berth-test/harbor:latest "$context"

say "5/5 suite"
"$berth" sandbox create berth-test/harbor:latest --name "$box" \
    --mount "type=bind,src=$run/host,dst=/run/berth-host" --env BERTH_HOST=unix:///run/berth-host/berth.sock
mkdir -p "$run/suite/python"
cp -r examples tests pyproject.toml "$run/suite/"
cp -r python/tests "$run/suite/python/"
"$berth" sandbox cp "$run/suite" "$box:/suite"

status=0
inside pytest -q -rs -p no:cacheprovider python/tests || status=1
inside pytest -q -rs -p no:cacheprovider --durations=5 tests/harbor "$@" || status=1

# A daemon killed under a running trial: a second one, with nothing in its store, since the first runs the suite itself.
say "a daemon killed under a trial"
serve victim "$base/harbor-victim"
victim=$served
inside --env BERTH_HOST=unix:///run/berth-host/victim.sock --env BERTH_TEST_VICTIM=1 \
    pytest -q -rs -p no:cacheprovider tests/harbor/test_daemon_lost.py &
lost=$!
for _ in $(seq 600); do
    [ -e "$run/host/ready" ] && break
    kill -0 "$lost" 2>/dev/null || break
    sleep 0.1
done
if [ -e "$run/host/ready" ]; then
    sleep 0.5
    kill -KILL "$victim"
    wait "$victim" 2>/dev/null || true
else
    echo "the trial never ran its agent" >&2
    status=1
fi
wait "$lost" || status=1
# Its successor finds and clears away what it left.
serve victim "$base/harbor-victim"

if [ "$status" = 0 ]; then say "all passed"; else say "FAILED"; fi
exit "$status"
