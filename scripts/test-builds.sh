#!/usr/bin/env bash
# Real Dockerfiles: builds each of tests/images with Berth, builds it again (which must all come from the cache), and
# runs its check in a sandbox of the image. A line each: PASS, FAIL or SKIP, with the seconds of the build, of the second one
# and of the check.
#
#   scripts/test-builds.sh            all of them; needs the package registries, and some gigabytes
#   scripts/test-builds.sh --quick    those that take little time, as continuous integration runs them
#   scripts/test-builds.sh NAME...
#
#   BERTH            the binary to test (default: target/debug/berth)
#   BERTH_TEST_DIR   where images are kept from run to run (default: /var/tmp/berth-test)
#   JOBS             how many at a time (default: 2)
#
# In tests/images/NAME: Dockerfile and context; check.sh, run by the sandbox's shell in its working directory (or, for an
# image without a shell, check.command and what it prints in check.expected); arguments, further ones of the build, one a line.
# Where the machine's SSL_CERT_FILE names an authority of its own, builds are given it too: a company's proxy needs that.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=(shell heredocs secrets sqlite c-make)
target=${CARGO_TARGET_DIR:-$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')}
berth=${BERTH:-$target/debug/berth}
kept=${BERTH_TEST_DIR:-/var/tmp/berth-test}
data=$kept/images
names=()
for argument in "$@"; do
    case $argument in
    # The directory of the other suites: all begin with the same base image.
    --quick) names+=("${quick[@]}") data=$kept/suite ;;
    *) names+=("$argument") ;;
    esac
done
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(cd tests/images && printf '%s\n' */ | tr -d /)
[ "$(id -u)" = 0 ] || { echo "SKIP: builds of real Dockerfiles need root"; exit 0; }

run=$(mktemp -d /tmp/berth-builds.XXXXXX)
daemon=
finish() {
    local status=$?
    trap - EXIT
    [ "$status" = 0 ] || tail -n 20 "$run/daemon.log"
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$run"
    exit "$status"
}
trap finish EXIT

mkdir -p "$data" "$run/results"
export BERTH_HOST="unix://$run/berth.sock" BERTH_CONFIG="$run/berth.toml"
# A machine for tests may be filled further than others.
printf '[disk]\nreserve_mb = 512\n' >"$BERTH_CONFIG"
[ -z "${SSL_CERT_FILE:-}" ] || printf '[builds]\nca_bundle = "%s"\n' "$SSL_CERT_FILE" >>"$BERTH_CONFIG"
BERTH_DATA_DIR=$data "$berth" serve 2>>"$run/daemon.log" &
daemon=$!
for _ in $(seq 300); do
    "$berth" version >/dev/null 2>&1 && break
    kill -0 "$daemon" || exit 1
    sleep 0.1
done

# The bases that the chosen ones name, made of the packages of this machine's mirror.
for base in $(for name in "${names[@]}"; do sed -n 's/^FROM \(debian:[a-z]*\).*/\1/p' "tests/images/$name/Dockerfile"; done | sort -u); do
    if ! "$berth" image ls --json | grep "library/$base\"" >/dev/null; then
        start=$SECONDS
        "$berth" --quiet image bootstrap "$base" >"$run/bootstrap.log" 2>&1 || { cat "$run/bootstrap.log"; exit 1; }
        echo "$base made in $((SECONDS - start)) s"
    fi
done

since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

# Prints why, if it fails.
check() { # NAME SANDBOX
    local dir=tests/images/$1
    if [ -e "$dir/check.command" ]; then
        local words
        read -ra words <"$dir/check.command"
        "$berth" sandbox exec "$2" -- "${words[@]}" >"$run/$1.printed" 2>"$run/$1.check" || return 1
        diff "$dir/check.expected" "$run/$1.printed" >>"$run/$1.check"
    else
        "$berth" sandbox exec -i --timeout 300 "$2" -- sh -eux -s <"$dir/check.sh" >"$run/$1.check" 2>&1
    fi
}

one() { # NAME
    local name=$1 dir=tests/images/$1 start built again checked sandbox arguments=()
    [ ! -e "$dir/arguments" ] || mapfile -t arguments < <(sed "s|{dir}|$dir|" "$dir/arguments")
    start=$EPOCHREALTIME
    if ! "$berth" image build --json -t "berth-test/$name" "${arguments[@]}" "$dir" >"$run/$name.json" 2>"$run/$name.log"; then
        echo "FAIL: images/$name: the build" && tail -n 25 "$run/$name.log"
        return
    fi
    built=$(since "$start") start=$EPOCHREALTIME
    "$berth" image build --json "${arguments[@]}" "$dir" >"$run/$name.again" 2>>"$run/$name.log" || true
    again=$(since "$start") start=$EPOCHREALTIME
    if ! python3 -c '
import json, sys
first, second = (json.load(open(name)) for name in sys.argv[1:])
sys.exit(second["cached_steps"] != second["steps"] or first["image"]["id"] != second["image"]["id"])
' "$run/$name.json" "$run/$name.again"; then
        echo "FAIL: images/$name: the second build is not from the cache" && tail -n 25 "$run/$name.log"
        return
    fi
    if ! sandbox=$("$berth" sandbox create "berth-test/$name" --allow-unenforced-storage 2>"$run/$name.create"); then
        echo "FAIL: images/$name: the sandbox" && cat "$run/$name.create"
        return
    fi
    if check "$name" "$sandbox"; then
        checked=$(since "$start")
        echo "PASS: images/$name (built in $built s, again in $again s, checked in $checked s)"
    else
        echo "FAIL: images/$name: the check" && tail -n 25 "$run/$name.check"
    fi
    "$berth" sandbox rm "$sandbox" >/dev/null 2>&1 || "$berth" sandbox rm --force "$sandbox" >/dev/null
}

start=$SECONDS
for name in "${names[@]}"; do
    while [ "$(jobs -rp | grep -cvx "$daemon")" -ge "${JOBS:-2}" ]; do wait -n; done
    { one "$name" >"$run/results/$name" 2>&1 || true; cat "$run/results/$name"; } &
done
for job in $(jobs -rp); do [ "$job" = "$daemon" ] || wait "$job" || true; done
failed=$(cat "$run"/results/* | grep -c '^FAIL:' || true)
echo "${#names[@]} images, $failed failed, in $((SECONDS - start)) s"
[ "$failed" = 0 ]
