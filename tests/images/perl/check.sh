test "$(perl -MGreeting -e 'print Greeting::greet("me")')" = "hello, me"
