#!/bin/sh
set -eu
[ "$(echo "6 * 7" | bc)" = "$(cat /answer 2>/dev/null)" ] && reward=1 || reward=0
echo "$reward" > /logs/verifier/reward.txt
