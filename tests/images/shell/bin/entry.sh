#!/bin/sh
echo "$GREETING from $PWD: $*"
