#!/bin/bash
# What tasks expect of a machine. Runs as root in a sandbox of the image beside this file; one line for each thing that
# works or does not. `docs/full-machine.md` says of those that do not why.
set -u
cd /root
export LC_ALL=C
failed=0

check() { # NAME COMMAND...
    local name=$1 out code=0
    shift
    out=$(timeout 60 "$@" 2>&1 </dev/null) || code=$?
    if [ "$code" = 0 ]; then
        echo "PASS: machine: $name"
    else
        failed=1
        printf 'FAIL: machine: %s (exit code %s)\n%s\n' "$name" "$code" "$out"
    fi
}
sh_check() { check "$1" bash -c "set -euo pipefail; $2"; }
as_dev() { check "$1" su dev -c "set -eu; cd; $2"; }

# A minute passes before cron runs anything, so it begins now.
echo '* * * * * root touch /tmp/cron-was-here' >/etc/cron.d/machine
sh_check 'cron starts' 'service cron start'

as_dev 'sudo' '[ "$(sudo id -u)" = 0 ]'
as_dev 'sudo to another user' '[ "$(sudo -u postgres id -un)" = postgres ]'
sh_check 'useradd, chpasswd, su with another shell' 'useradd -m guest1; echo guest1:secret | chpasswd; su -s /bin/sh guest1 -c "id -un" | grep -qx guest1'
sh_check 'chown to ids up to 262143' 'touch f; for id in 1 1000 65533 100000 197609 262143; do chown $id:$id f; [ "$(stat -c %u:%g f)" = $id:$id ]; done'
sh_check 'tar keeps owners' 'mkdir -p t; touch t/a; chown 197609:197609 t/a; tar cf t.tar t; rm -r t; tar xf t.tar; [ "$(stat -c %u t/a)" = 197609 ]'
sh_check 'file capabilities' 'cp /usr/bin/python3 /usr/local/bin/pybind; setcap cap_net_bind_service+ep /usr/local/bin/pybind; getcap /usr/local/bin/pybind | grep -q net_bind'
sh_check 'access control lists' 'touch acl; setfacl -m u:dev:rw acl; getfacl acl | grep -q user:dev:rw'
sh_check 'extended attributes' 'touch x; setfattr -n user.colour -v blue x; [ "$(getfattr --only-values -n user.colour x)" = blue ]'
sh_check 'directories of the image replaced' 'rm -rf /usr/share/doc; mkdir /usr/share/doc; touch /usr/share/doc/n; [ "$(ls /usr/share/doc)" = n ]'
sh_check 'hard links, fifos, sockets' 'touch h; ln h h2; mkfifo p; python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\"s\")"'

sh_check 'apt-get install' 'apt-get update -q; apt-get install -yq --no-install-recommends hello; hello | grep -q Hello'
sh_check 'venv and pip' 'python3 -m venv v; mkdir -p pkg; printf "[project]\nname=\"thing\"\nversion=\"1\"\n[tool.setuptools]\npy-modules=[\"thing\"]\n" >pkg/pyproject.toml; echo x=1 >pkg/thing.py; v/bin/pip --version; v/bin/python -c "import ssl, sqlite3, multiprocessing; multiprocessing.Pool(2).map(abs, [1, 2])"'
sh_check 'gcc and make at full width' 'printf "int main(void){return 0;}\n" >m.c; printf "m: m.c\n\tgcc -o m m.c\n" >Makefile; make -j"$(nproc)"; ./m'
sh_check 'git' 'git init -q r; cd r; git -c user.name=a -c user.email=b commit -q --allow-empty -m x; git clone -q . ../r2'
sh_check 'gdb runs and inspects' 'gdb -batch -ex "break main" -ex run -ex bt -ex kill ./m | grep -q "in main"'
as_dev 'gdb attaches to an own process' 'sleep 50 & sleep 0.3; gdb -batch -p $! -ex bt | grep -q sleep; kill $!'
as_dev 'strace' 'strace -f -o trace sh -c "true | cat"; grep -q execve trace'
as_dev 'strace attaches to an own process' 'sleep 3 & sleep 0.2; timeout 2 strace -p $! -o att || true; [ -s att ]'
as_dev 'a crash without a core file' 'mkdir c; cd c; ulimit -c 0; r=0; sh -c "kill -SEGV \$\$" || r=$?; [ $r = 139 ]; [ -z "$(ls)" ]'

as_dev 'ping as a user' 'ping -c1 -W2 127.0.0.1'
as_dev 'a user listens on port 80' 'python3 -c "import socket; s=socket.socket(); s.bind((\"127.0.0.1\", 80))"'
sh_check 'tcpdump' 'timeout 10 tcpdump -i lo -c1 -w cap icmp & sleep 1; ping -c2 127.0.0.1; wait $!; [ -s cap ]'
sh_check 'ip and ss' 'ip addr show lo | grep -q 127.0.0.1; ss -ltn'

sh_check 'sshd and ssh' 'ssh-keygen -q -t ed25519 -N "" -f id; mkdir -p -m 700 ~dev/.ssh; cp id.pub ~dev/.ssh/authorized_keys; chown -R dev: ~dev/.ssh; service ssh start; ssh -o StrictHostKeyChecking=no -i id dev@127.0.0.1 id -un | grep -qx dev'
sh_check 'scp and rsync over ssh' 'echo data >d; scp -q -o StrictHostKeyChecking=no -i id d dev@127.0.0.1:d2; rsync -e "ssh -o StrictHostKeyChecking=no -i id" dev@127.0.0.1:d2 d3; cmp d d3'
as_dev 'tmux' 'tmux new-session -d -s a "sh -c \"echo hello; sleep 20\""; sleep 1; tmux capture-pane -p -t a | grep -q hello; tmux kill-server'
sh_check 'script and terminals' 'script -qc "tty" /dev/null | grep -q /dev/pts'
sh_check 'postgresql' 'service postgresql start; for i in $(seq 50); do su postgres -c "psql -Atc \"select 6*7\"" 2>/dev/null | grep -qx 42 && exit 0; sleep 0.2; done; exit 1'
sh_check 'nginx on port 80' 'service nginx start; curl -fsS http://127.0.0.1/ | grep -qi nginx'
sh_check 'redis' 'redis-server --daemonize yes --port 6380; for i in $(seq 50); do redis-cli -p 6380 ping 2>/dev/null | grep -q PONG && exit 0; sleep 0.1; done; exit 1'
sh_check 'locales' 'echo "de_DE.UTF-8 UTF-8" >/etc/locale.gen; locale-gen; LC_ALL=de_DE.UTF-8 locale -k decimal_point | grep -q ","'
sh_check 'shared memory and message queues' 'echo x >/dev/shm/x; ipcmk -M 4096; ipcs -m; python3 -c "from multiprocessing import shared_memory as s; m=s.SharedMemory(create=True,size=10); m.unlink()"'
sh_check 'file locks, inotify, io priority' 'flock lock true; python3 -c "import ctypes; assert ctypes.CDLL(None).inotify_init() >= 0"; ionice -c3 true; nice -n 5 true'
sh_check 'limits can be lowered' 'ulimit -n 100; [ "$(ulimit -n)" = 100 ]'
sh_check 'clock, host name, machine' 'date; hostname; uname -a; uptime; free; df -h /'

# What a sandbox refuses, so that the list in the docs stays true.
refused() { # NAME COMMAND...
    local name=$1
    shift
    if timeout 20 bash -c "$*" >/dev/null 2>&1; then
        failed=1
        echo "FAIL: machine: $name is said not to work, and does"
    else
        echo "PASS: machine: refused as documented: $name"
    fi
}
refused 'mount' 'mount -t tmpfs none /mnt'
refused 'unshare' 'unshare -Ur true'
refused 'device nodes' 'mknod /root/sda b 8 0'
refused 'kernel settings' 'echo 1 >/proc/sys/vm/swappiness'
refused 'loop devices' 'losetup -f'
refused 'the clock' 'date -s 2001-01-01'
refused 'kernel log' 'dmesg'

for _ in $(seq 70); do [ -e /tmp/cron-was-here ] && break; sleep 1; done
check 'cron runs jobs' test -e /tmp/cron-was-here
exit "$failed"
