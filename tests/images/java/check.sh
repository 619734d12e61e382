test "$(java -jar app.jar)" = 5050
