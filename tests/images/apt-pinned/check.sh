test "$(apt-mark showhold)" = jq
dpkg-query -W -f '${Version}' jq | grep -q '^1\.6-2\.1'
test "$(echo '{"a": [1, 2]}' | jq -c .a)" = '[1,2]'
tree --version
