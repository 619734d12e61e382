#!/usr/bin/env bash
# Runs test_embedded.py where no daemon runs: embedded.sh DATA_DIR REFERENCE WORK SUITE
#
# A daemon cannot run in a Berth sandbox. So the root file system of the image REFERENCE is put together from the layers in
# DATA_DIR, a daemon's data directory or pool, writable under WORK, and entered with all of root's privileges: to Berth's packaged binary it is a
# machine of its own, with its own /run and /var/lib, on this kernel. Processes and mounts end with this script.
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    trap 'kill -KILL "$child" 2>/dev/null || true' EXIT
    trap 'exit 143' TERM INT HUP
    unshare --mount --pid --fork --kill-child=KILL --propagation private "$0" --inside "$@" &
    child=$!
    wait "$child"
    exit
fi

data=$2 reference=$3 work=$4 suite=$5
layers=$(
    python3 - "$data" "$reference" <<'PY'
import json, pathlib, sys

data, reference = pathlib.Path(sys.argv[1]), sys.argv[2]
known = json.loads((data / "images/references.json").read_text())["references"]
(image,) = (image for name, image in known.items() if name.endswith(reference))
config = json.loads((data / f"images/{image.removeprefix('sha256:')}.json").read_text())
# Overlayfs has the uppermost layer first.
print(":".join(diff_id.removeprefix("sha256:")[:24] for diff_id in reversed(config["rootfs"]["diff_ids"])))
PY
)
root=$work/root
mkdir -p "$root" "$work/upper" "$work/overlay" "$work/data"
# By relative names, since mount(2) takes no more than a page of options.
(cd "$data/layers" && mount -t overlay overlay -o "lowerdir=$layers,upperdir=$work/upper,workdir=$work/overlay" "$root")
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/var/lib/berth" "$root/suite" "$root/.outside"
# A sandbox's writable layer cannot lie on an overlay.
mount --bind "$work/data" "$root/var/lib/berth"
mount --bind "$suite" "$root/suite"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# The image has no mkfs.btrfs, so storage cannot be limited there, and the task asks for some.
mkdir -p "$root/etc/berth"
printf '[limits]\nallow_unenforced_storage = true\n' >"$root/etc/berth/berth.toml"
cd "$root"
pivot_root . .outside
umount -l /.outside
cd /suite
exec env -i HOME=/root LC_ALL=C.UTF-8 PATH=/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 \
    BERTH_TEST_EMBEDDED=1 \
    sh -c 'pip install --quiet --no-index wheel/*.whl && pytest -rs --no-header -p no:cacheprovider tests/harbor/test_embedded.py'
