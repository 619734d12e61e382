#!/bin/busybox sh
# The machine's first program: finds the disks by the names that QEMU gave them and goes on from the tests' one.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

while read -r module; do
    insmod "/modules/$module"
done </modules/order

# Prints the device of a disk.
disk() { # SERIAL
    for tries in 1 2 3 4 5 6 7 8 9 10; do
        for dir in /sys/block/vd*; do
            [ "$(cat "$dir/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${dir##*/}" && return
        done
        usleep 100000
    done
    echo "FAIL: vm: no disk $1" >&2
    poweroff -f
}

mount -t ext4 -o noatime "$(disk root)" /root
modules=/root/lib/modules/$(cat /release)
mkdir -p "$modules"
mount -t ext4 -o ro "$(disk modules)" "$modules"
mount -t ext4 -o ro "$(disk tests)" /root/tests
xfs=$(disk xfs)
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /tests/init "$xfs"
