test "$(report)" = "3 parts, level = info"
grep -qx 'home = $HOME' /srv/app/config.ini
grep -qx 'written by perl' /srv/app/perl
