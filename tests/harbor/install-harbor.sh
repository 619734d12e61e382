#!/bin/sh
# Install Harbor into the current Python environment: install-harbor.sh PIP REQUIREMENT...
#
# Harbor 0.25.0 asks for a release of `certifi` that an index may not carry (yet). Where the ordinary way fails,
# Harbor is installed with every dependency as it asks, but for that one floor, and says so. Nothing else is relaxed.
set -eu
pip=$1
shift
if "$pip" install "$@"; then
    exit 0
fi
echo "NOTE: the ordinary installation failed; installing Harbor with certifi's version floor dropped" >&2
"$pip" install --no-deps "$@"
python=$(dirname "$pip")/python
"$python" - >/tmp/harbor-requirements.txt <<'PY'
from importlib.metadata import requires

for line in requires("harbor") or []:
    if "extra ==" in line:
        continue
    print("certifi" if line.startswith("certifi") else line)
PY
"$pip" install -r /tmp/harbor-requirements.txt
