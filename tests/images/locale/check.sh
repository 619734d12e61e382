test "$(date -d '2024-03-01' +%B)" = März
test "$(date -d @0 +%H)" = 01
