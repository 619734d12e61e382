test "$(primes 20)" = "2 3 5 7 11 13 17 19 "
test "$(id -un)" = nobody
! command -v cmake
