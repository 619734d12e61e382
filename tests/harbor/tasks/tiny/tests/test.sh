#!/bin/sh
set -eu
[ ! -e /bin/bash ]
[ "$(cat /answer 2>/dev/null)" = 4 ] && reward=1 || reward=0
echo "$reward" > /logs/verifier/reward.txt
