#!/usr/bin/env bash
# tests/setup.sh PYTHON VENV: a virtual environment with flox-node (editable) and its development dependencies.
# Installs Debian's Python where the machine has none that is new enough.
set -euo pipefail
python=$1 venv=$2
say() { printf '[setup] %s\n' "$*"; }

if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "installing python3 and python3-venv from Debian"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >/dev/null
    python=/usr/bin/python3
fi
[ -x "$venv/bin/python" ] || { say "making $venv"; "$python" -m venv "$venv"; }
say "installing flox-node and its tools into $venv"
"$venv/bin/python" -m pip install --quiet --upgrade 'pip==26.3'
"$venv/bin/python" -m pip install --quiet --group dev --editable ".[cluster,agent,fetch]"
say "$("$venv/bin/flox-node" --version) ready"
