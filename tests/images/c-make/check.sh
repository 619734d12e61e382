test "$(echo one two three four | count)" = 4
touch count.c && make -q 2>/dev/null && exit 1
make && make test
