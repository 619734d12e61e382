redis-server --daemonize yes >/dev/null
for _ in $(seq 50); do test "$(redis-cli ping 2>/dev/null)" = PONG && break; sleep 0.1; done
test "$(redis-cli get seeded)" = yes
test "$(redis-cli incr n)" = 1
redis-cli shutdown nosave
