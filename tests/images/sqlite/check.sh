test "$(sqlite3 people.db 'SELECT count(*), min(born) FROM people')" = "3|1815"
sqlite3 people.db "INSERT INTO people VALUES ('Radia', 1951)"
test "$(sqlite3 people.db 'PRAGMA integrity_check')" = ok
