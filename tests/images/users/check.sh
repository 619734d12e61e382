test "$(id -un)" = agent
test "$(sudo id -un)" = root
test "$(stat -c %U .)" = agent
test "$(stat -c '%U' mine roots | tr '\n' ' ')" = "agent root "
