test "$PWD" = /app
test "$(bin/entry.sh a b)" = "hello from /app: a b"
cd data && sha256sum -c sums
