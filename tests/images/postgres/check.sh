pg_ctlcluster 15 main start
psql() { su postgres -c "psql -qtAc \"$1\""; }
test "$(psql 'SELECT sum(amount) FROM fruit')" = 7
psql "INSERT INTO fruit VALUES ('plum', -1)" 2>/dev/null && exit 1
psql "INSERT INTO fruit VALUES ('plum', 1)"
test "$(psql 'SELECT count(*) FROM fruit')" = 3
pg_ctlcluster 15 main stop
