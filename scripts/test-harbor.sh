#!/usr/bin/env bash
# Real Harbor against a real daemon, by Berth's own means: Harbor's Python lives in an image that Berth bootstraps and
# builds, and runs in a Berth sandbox that has the daemon's socket.
#
#   BERTH            the binary to test (default: target/debug/berth)
#   BERTH_TEST_DIR   where images are kept from run to run (default: /var/tmp/berth-test)
#   BERTH_DATA_DIR   the daemon's data directory (default: $BERTH_TEST_DIR/suite)
#
# Further arguments go to pytest and choose among the tests of the trials, for example: scripts/test-harbor.sh -k square
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
berth=${BERTH:-$target/debug/berth}
base=${BERTH_TEST_DIR:-/var/tmp/berth-test}
data=${BERTH_DATA_DIR:-$base/suite}
run=$(mktemp -d /tmp/berth-harbor.XXXXXX)
box="harbor-suite-$$"
daemons=()
embedded=
status=0

say() { printf '\n== %s (after %d s)\n' "$*" "$SECONDS"; }

die() {
    echo "$*" >&2
    exit 1
}

finish() {
    status=$?
    trap - EXIT
    if [ "$status" != 0 ]; then
        for log in "$run"/*.log "$run"/embedded/data/daemon.log; do
            [ ! -e "$log" ] || { printf '\n-- end of %s\n' "${log##*/}" && tail -n 30 "$log"; }
        done
    fi
    "$berth" --quiet sandbox rm "$box" >/dev/null 2>&1 || true
    # With the last of these, whatever runs in the embedded daemon's root ends too.
    for pid in "${daemons[@]}" $embedded; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${daemons[@]}" $embedded; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$run"
    exit "$status"
}
trap finish EXIT

# serve NAME DATA_DIR: starts a daemon on $run/host/NAME.sock and waits until it answers; its pid is in $served.
serve() {
    BERTH_HOST="unix://$run/host/$1.sock" BERTH_DATA_DIR="$2" "$berth" serve --config "$run/berth.toml" 2>>"$run/$1.log" &
    served=$!
    daemons+=("$served")
    for _ in $(seq 200); do
        if BERTH_HOST="unix://$run/host/$1.sock" "$berth" version >/dev/null 2>&1; then
            return
        fi
        kill -0 "$served" 2>/dev/null || break
        sleep 0.1
    done
    die "the daemon $1 does not answer"
}

# inside COMMAND…: runs a command in the suite's sandbox.
inside() { "$berth" sandbox exec "$box" --cwd /suite "$@"; }

suite() { inside "$@" pytest -rs --no-header -p no:cacheprovider "${tests[@]}" || status=1; }

# bootstrap SUITE…: makes sure of base images, all at once.
bootstrap() {
    local suite making=() made=0 known
    known=$("$berth" image ls --json)
    for suite in "$@"; do
        if [[ $known == *"library/debian:$suite\""* ]]; then
            echo "debian:$suite is in the store"
        else
            echo "debian:$suite comes from the mirror"
            "$berth" --quiet image bootstrap "debian:$suite" >"$run/bootstrap-$suite.log" 2>&1 &
            making+=($!)
        fi
    done
    for pid in "${making[@]}"; do
        wait "$pid" || made=1
    done
    return "$made"
}

# native NAME CODE ARGUMENT…: a job of Berth's own runner, for Harbor to read.
native() {
    local name=$1 expected=$2 code=0
    shift 2
    "$berth" --quiet run "$@" --jobs-dir "$run/suite/native" --job-name "$name" >"$run/native.log" 2>&1 || code=$?
    [ "$code" = "$expected" ] || die "berth run $* ended with $code instead of $expected"
}

say "1/7 daemon"
[ -x "$berth" ] || die "$berth is not there: cargo build -p berth"
mkdir -p "$run/host" "$run/suite/python" "$run/context/ca" "$data"
export BERTH_HOST="unix://$run/host/berth.sock"
unset BERTH_DATA_DIR
# Tasks ask for storage, and not every machine that this runs on can limit it. What is tested here is the rest.
printf '[limits]\nallow_unenforced_storage = true\n' >"$run/berth.toml"
serve berth "$data"
"$berth" version

say "2/7 base images"
bootstrap trixie bookworm

say "3/7 wheel"
maturin=$target/tools/bin/maturin
[ -x "$maturin" ] || { python3 -m venv "$target/tools" && "$target/tools/bin/pip" install --quiet 'maturin>=1.9,<2'; }
"$maturin" build --profile dev --strip --compatibility linux --out "$run/suite/wheel" ${CI:+--quiet}
(cd "$run/suite/wheel" && ls -sh -- *.whl)

say "4/7 image with Harbor"
cp tests/harbor/Dockerfile "$run/context/"
sed -n 's/^harbor = \["\(.*\)"\]$/\1/p' pyproject.toml >"$run/context/requirements.txt"
cp /etc/ssl/certs/ca-certificates.crt "$run/context/ca/" 2>/dev/null || touch "$run/context/ca/none"
"$berth" image build --tag berth-test/harbor:latest "$run/context"

say "5/7 suite"
"$berth" sandbox create berth-test/harbor:latest --name "$box" \
    --mount "type=bind,src=$run/host,dst=/run/berth-host" --env BERTH_HOST=unix:///run/berth-host/berth.sock

native oracle 0 examples/tasks/square-2 -a oracle -k 3
native nop 0 examples/tasks/square-2 -a nop
native command 0 examples/tasks/square-2 --agent-cmd 'echo said; exit 3'
native faults 69 tests/harbor/tasks/no-reward tests/harbor/tasks/broken-build
cp -r examples tests pyproject.toml "$run/suite/"
cp -r python/tests "$run/suite/python/"
cp crates/harbor/tests/validate_layout.py "$run/suite/tests/harbor/"
"$berth" sandbox cp "$run/suite" "$box:/suite"

inside sh -c 'pip install --quiet "$(echo wheel/*.whl)[harbor]" && pip list 2>/dev/null | grep -E "^(berth|harbor|certifi) "'

tests=(python/tests)
suite
# The contract for commands and files, through the installed client; sizes in full with BERTH_FULL=1.
tests=(--durations=5 tests/conformance)
suite --env "BERTH_FULL=${BERTH_FULL:-0}" --env "BERTH_TEST_SHARED=/run/berth-host:$run/host"
tests=(--durations=5 tests/harbor --ignore tests/harbor/test_daemon_lost.py --ignore tests/harbor/test_embedded.py "$@")
suite
# What keeps pip from installing it in the ordinary way, if anything does.
echo "-- the same under the code of Harbor 0.25.0, laid over these packages:"
inside --env PYTHONPATH=/opt/harbor-0.25 pip check || true
tests=(python/tests/test_harbor_environment.py tests/harbor/test_native.py tests/harbor/test_trials.py -k "not trials or test_square")
suite --env PYTHONPATH=/opt/harbor-0.25

say "6/7 daemons that are killed"
# A second daemon, since the first runs the suite itself.
mkdir -p "$run/host/victim"
tests/conformance/restarter.sh "$berth" "$run/host/victim" "$base/victim" "$run/berth.toml" &
restarter=$!
daemons+=("$restarter")
for _ in $(seq 300); do
    [ ! -e "$run/host/victim/ready" ] || break
    kill -0 "$restarter" 2>/dev/null || break
    sleep 0.1
done
victim_host=unix://$run/host/victim/victim.sock
if ! BERTH_HOST=$victim_host "$berth" image ls --json | grep -q 'library/debian:bookworm"'; then
    BERTH_HOST=$victim_host "$berth" --quiet image bootstrap debian:bookworm >"$run/bootstrap-victim.log" 2>&1
fi
tests=(--durations=5 tests/conformance/test_restart.py)
suite --env BERTH_TEST_RESTARTER=/run/berth-host/victim
# One that is killed under a trial and comes back, and one that does not.
for back in yes no; do
    rm -f "$run/host/ready"
    inside --env BERTH_HOST=unix:///run/berth-host/victim/victim.sock --env "BERTH_TEST_VICTIM=$back" \
        pytest -rs --no-header -p no:cacheprovider tests/harbor/test_daemon_lost.py &
    lost=$!
    for _ in $(seq 600); do
        [ ! -e "$run/host/ready" ] || break
        kill -0 "$lost" 2>/dev/null || break
        sleep 0.1
    done
    if [ ! -e "$run/host/ready" ]; then
        echo "the trial never ran its agent" >&2
        status=1
    elif [ "$back" = yes ]; then
        sleep 0.5
        touch "$run/host/victim/kill"
    else
        sleep 0.5
        touch "$run/host/victim/kill-for-good"
    fi
    wait "$lost" || status=1
done
wait "$restarter" 2>/dev/null || true
# Its successor finds and clears away what it left.
serve victim "$base/victim"

say "7/7 nobody starts a daemon"
# The layers may be in a pool, which is mounted for the daemon alone.
layers=$data
[ ! -e "$data/pool.btrfs" ] || layers=$data/pool
nsenter --wd="$PWD" --mount="/proc/${daemons[0]}/ns/mnt" \
    tests/harbor/embedded.sh "$layers" berth-test/harbor:latest "$run/embedded" "$run/suite" &
embedded=$!
wait "$embedded" || status=1
embedded=

if [ "$status" = 0 ]; then say "all passed"; else say "FAILED"; fi
exit "$status"
