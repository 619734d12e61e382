#!/usr/bin/env bash
# Keeps a daemon on DIR/victim.sock that the restart tests may have killed: restarter.sh BERTH DIR DATA_DIR CONFIG
#
# Where DIR/kill appears the daemon is killed by SIGKILL and started again; the file goes once the new one answers. Where
# DIR/kill-for-good appears it is killed and this script ends. Told to end, it ends the daemon and so its sandboxes.
set -euo pipefail
berth=$1 dir=$2 data=$3 config=$4
export BERTH_HOST="unix://$dir/victim.sock" BERTH_DATA_DIR="$data"

finish() {
    trap - EXIT
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    exit
}

serve() {
    "$berth" serve --config "$config" 2>>"$dir/victim.log" &
    daemon=$!
    for _ in $(seq 600); do
        if "$berth" version >/dev/null 2>&1; then return; fi
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.05
    done
    echo "the daemon does not answer" >&2
    exit 1
}

daemon=
trap finish EXIT
trap 'exit 0' TERM INT HUP
serve
touch "$dir/ready"
while sleep 0.02; do
    if [ -e "$dir/kill-for-good" ]; then
        kill -KILL "$daemon"
        exit 0
    fi
    if [ -e "$dir/kill" ]; then
        kill -KILL "$daemon"
        wait "$daemon" 2>/dev/null || true
        # Long enough for clients to find nobody there.
        sleep 0.5
        serve
        rm -f "$dir/kill"
    fi
done
