#!/bin/sh
set -eu
cd "$1"
sha256sum -- *.txt > sums
