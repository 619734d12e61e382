crontab -l | grep -q /tmp/ran
cron
pgrep -x cron >/dev/null
test "$(stat -c '%G' /usr/bin/crontab)" = crontab && test -g /usr/bin/crontab
