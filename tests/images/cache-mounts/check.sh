test "$(cat /answer)" = 42
test -z "$(ls /var/cache/apt/archives/*.deb 2>/dev/null)"
test ! -s /tmp/formula
