nginx -g 'daemon off;' >/dev/null 2>&1 &
for _ in $(seq 50); do curl -s 127.0.0.1:8080/ >/dev/null && break; sleep 0.1; done
test "$(curl -s 127.0.0.1:8080/)" = '<h1>served</h1>'
test "$(curl -s 127.0.0.1:8080/api)" = api
test "$(curl -s -o /dev/null -w '%{http_code}' 127.0.0.1:8080/none)" = 404
kill -QUIT $!
