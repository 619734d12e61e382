#!/bin/sh
# Installs Harbor in the virtual environment VENV: install-harbor.sh VENV REQUIREMENT
#
# Harbor 0.25.0 asks for a certifi so new that an index may not have it yet. Then, and only for certifi, the newest one
# that the index has is taken instead, and a line beginning with NOTE: says so; the figures name the version.
set -eu
venv=$1 requirement=$2
if "$venv/bin/pip" install "$requirement"; then
    exit
fi
echo "NOTE: $requirement cannot be installed as it asks; installing it with the newest certifi that the index has" >&2
"$venv/bin/pip" install --no-deps "$requirement"
"$venv/bin/python" - >"$venv/requirements.txt" <<'PY'
import importlib.metadata
import re

for requirement in importlib.metadata.requires("harbor") or []:
    if "extra ==" not in requirement:
        print("certifi" if re.match(r"certifi\b", requirement) else requirement)
PY
"$venv/bin/pip" install -r "$venv/requirements.txt"
