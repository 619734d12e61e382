#!/bin/bash
# The machine's cc: the real one, but what was compiled once from the same sources by the same command is copied.
# Under emulation a static program takes 2 s to compile, and every test that wants one would compile it again.
words=() sources=() out=
while [ $# -gt 0 ]; do
    case $1 in
    -o) out=$2 && shift ;;
    *) words+=("$1") && case $1 in *.c) sources+=("$1") ;; esac ;;
    esac
    shift
done
[ -n "$out" ] && [ "${#sources[@]}" -gt 0 ] || exec /usr/bin/gcc "${words[@]}" ${out:+-o "$out"}
key=$({ printf '%s\n' "${words[@]}" && cat "${sources[@]}"; } | sha256sum | cut -c1-32)
kept=/run/vm/cc-$key
exec 9>"$kept.lock"
flock 9
[ -e "$kept" ] || { /usr/bin/gcc "${words[@]}" -o "$kept.new" && mv "$kept.new" "$kept"; } || exit
exec 9>&-
cp "$kept" "$out"
