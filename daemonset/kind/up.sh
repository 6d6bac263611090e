#!/bin/sh
# From nothing to a running Flox pod on this machine: finds or makes the command `flox-node` and has it do the work.
# Arguments are those of `flox-node kind up`: ./up.sh --nodes 3, ./up.sh --dry-run; see ./up.sh --help.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$here/../..

if command -v flox-node >/dev/null 2>&1; then
    exec flox-node kind up "$@"
fi
if [ -f "$root/pyproject.toml" ]; then
    command -v make >/dev/null 2>&1 || { echo "up.sh: make is needed to set flox-node up: install it first" >&2; exit 9; }
    [ -x "$root/.venv/bin/flox-node" ] || make -C "$root" setup >&2
    exec "$root/.venv/bin/flox-node" kind up "$@"
fi
echo "up.sh: flox-node is neither on the PATH nor in a source tree around this script." >&2
echo "  -> pip install 'flox-node[cluster]', or run the script from a clone of the repository" >&2
exit 9
