#!/bin/sh
set -eu
mkdir -p /logs/verifier
if [ "$(cat /tmp/answer.txt 2>/dev/null || true)" = "4" ]; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
