test "$(node index.js)" = 000172800000
test "$(npm ls --depth 0 --parseable | wc -l)" = 3
