test "$(ruby -rshout -e 'puts shout("hello")')" = 'HELLO!'
gem list | grep -q '^shout (1.0.0)'
