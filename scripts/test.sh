#!/usr/bin/env bash
# All tests, in phases; fails if any of them fails. The last line is the sum: N passed, N failed, N skipped.
#
# A test that cannot run on this machine prints a line beginning with "SKIP:" and counts as skipped, not as passed.
#
# Rust's tests run by cargo-nextest where it is installed, else by cargo test: same tests, same count. nextest is
# not installed from here, since building it takes longer than the tests do.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
logs="$target/test-logs"
mkdir -p "$logs"
passed=0 failed=0 skipped=0

count() { # PASSED FAILED SKIPPED
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
}

# Runs a phase under a heading, its output on the screen and in a file; false if it failed.
phase() { # NAME COMMAND...
    local name=$1 start=$SECONDS status=0
    shift
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$logs/$name.log"
    status=${PIPESTATUS[0]}
    if [ "$status" = 0 ]; then
        printf '== %s: done in %d s\n' "$name" $((SECONDS - start))
    else
        printf '== %s: FAILED (exit code %d) after %d s\n' "$name" "$status" $((SECONDS - start))
    fi
    return "$status"
}

# A phase that is one test.
check() { # NAME COMMAND...
    if phase "$@"; then count 1 0 0; else count 0 1 0; fi
}

# A phase without which there is no use in going on.
need() { # NAME COMMAND...
    phase "$@" || { count 0 1 0; finish; }
}

finish() {
    printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    [ "$failed" = 0 ]
    exit
}

lint() {
    make --no-print-directory lint
}

# Files that are checked in but made by a program.
generated() {
    cargo xtask openapi --check
}

# nextest keeps its reports below the checkout, wherever the products go.
junit=target/nextest/berth/junit.xml

nextest() {
    # Left from an earlier run, it would be counted for one that never came to running tests.
    rm -f "$junit"
    cargo nextest run --workspace --config-file scripts/nextest.toml --profile berth --no-tests=pass
}

# nextest's own summary knows failures, the JUnit file knows what each test printed.
count_nextest() { # STATUS
    local counts
    counts=$(python3 - "$junit" "$logs/rust.log" <<'PY'
import re, sys, xml.etree.ElementTree as xml

passed = failed = skipped = 0
try:
    cases = list(xml.parse(sys.argv[1]).iter("testcase"))
except (OSError, xml.ParseError) as error:
    # Without the report nobody knows what ran.
    print(f"no report of the tests: {error}", file=sys.stderr)
    failed, cases = 1, []
for case in cases:
    printed = "".join(out.text or "" for out in case.iter("system-out"))
    # Where the test's name is printed before it runs, what it prints first continues that line.
    reasons = re.findall(r"^(?:test .* \.\.\. )?(SKIP:.*)", printed, re.M)
    if case.find("failure") is not None or case.find("error") is not None:
        failed += 1
    elif reasons:
        skipped += 1
        print(f"{case.get('classname')} {case.get('name')}: {reasons[0]}", file=sys.stderr)
    else:
        passed += 1
# Tests marked #[ignore] are in no file, only in the summary.
with open(sys.argv[2], errors="replace") as log:
    summary = [line for line in log if "Summary [" in line]
ignored = re.search(r"(\d+) skipped", summary[-1]) if summary else None
print(passed, failed, skipped + (int(ignored[1]) if ignored else 0))
PY
    ) || counts="0 1 0"
    # shellcheck disable=SC2086 # three words
    count $counts
    # A build that failed, for one: no test has.
    [ "$1" = 0 ] || [ "$(cut -d' ' -f2 <<<"$counts")" != 0 ] || count 0 1 0
}

cargo_test() {
    cargo test --workspace --no-fail-fast -- --show-output
}

count_cargo_test() { # STATUS
    local sums skips
    sums=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$logs/rust.log" |
        awk '{ p += $1; f += $2; i += $3 } END { print p + 0, f + 0, i + 0 }')
    # Tests that skipped themselves passed for cargo. Each prints under a heading of its own, and perhaps more than once.
    skips=$(awk '/^---- .* stdout ----$/ { open = 1 } open && /^SKIP:/ { n++; open = 0 } END { print n + 0 }' "$logs/rust.log")
    # shellcheck disable=SC2086 # three words
    count $sums
    count "-$skips" 0 "$skips"
    [ "$1" = 0 ] || [ "$(cut -d' ' -f2 <<<"$sums")" != 0 ] || count 0 1 0
}

rust_tests() {
    local status=0
    if cargo nextest --version >/dev/null 2>&1; then
        phase rust nextest || status=$?
        count_nextest "$status"
    else
        phase rust cargo_test || status=$?
        count_cargo_test "$status"
    fi
}

# Scripts say what became of each test by lines that begin with PASS:, FAIL: or SKIP:, and pytest by its summary.
scripted_tests() { # NAME SCRIPT
    local log="$logs/$1.log" status=0 counts
    phase "$@" || status=$?
    counts=$(awk '
        /^PASS:/ { p++ }  /^FAIL:/ { f++ }  /^SKIP:/ { s++ }
        /^=+ .* in [0-9.]+s.* =+$/ {
            for (i = 2; i <= NF; i++) {
                n = $(i - 1) + 0
                if ($i ~ /^passed/) p += n
                if ($i ~ /^failed/ || $i ~ /^error/) f += n
                if ($i ~ /^skipped/) s += n
            }
        }
        END { print p + 0, f + 0, s + 0 }' "$log")
    # shellcheck disable=SC2086 # three words
    count $counts
    [ "$status" = 0 ] || [ "$(cut -d' ' -f2 <<<"$counts")" != 0 ] || count 0 1 0
}

need setup scripts/setup.sh test
check lint lint
need build cargo build --workspace
check generated generated
need leakcheck-before scripts/leakcheck.sh before
rust_tests
scripted_tests harbor scripts/test-harbor.sh
scripted_tests machine scripts/test-machine.sh
# Each case against what another builder made of it, or what the documents say.
scripted_tests builds tests/differential/run.sh
# The quick ones; all of them: scripts/test-builds.sh.
scripted_tests images scripts/test-builds.sh --quick
# The part that takes a few minutes; all of it: make test-vm.
scripted_tests vm scripts/vm/test.sh --smoke
check leakcheck scripts/leakcheck.sh after
finish
