test "$(cut -d' ' -f1 /token.sum)" = "$(echo 'not a real token' | sha256sum | cut -d' ' -f1)"
test ! -s /run/secrets/token
test ! -e /scratch/big
! grep -rqs 'not a real token' /etc /usr/local /opt /srv /root /tmp /var/tmp
