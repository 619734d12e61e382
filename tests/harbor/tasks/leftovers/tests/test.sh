#!/bin/sh
set -eu
# The agent ran out of its time: nothing of it may be left to meddle with this.
reward=1
for cmdline in /proc/[0-9]*/cmdline; do
  if tr "\0" " " < "$cmdline" 2>/dev/null | grep -q "sleep 7[7]77"; then reward=0; fi
done
[ -e /started ] || reward=0
echo "$reward" > /logs/verifier/reward.txt
