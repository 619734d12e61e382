php -S 127.0.0.1:8000 >/dev/null 2>&1 &
for _ in $(seq 50); do curl -s 127.0.0.1:8000/ >/dev/null && break; sleep 0.1; done
test "$(curl -s 127.0.0.1:8000/x)" = '{"path":"\/x","sum":6}'
kill $!
