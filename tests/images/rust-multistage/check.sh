test "$(fib 50)" = 12586269025
! command -v cargo
