#!/usr/bin/env bash
# tests/coverage.sh BIN: how much of the code the unit tests take, Python by branches and Go by statements.
# Fails below the kept figures: `fail_under` in pyproject.toml and KEPT_GO here. Raise them when the figure rises.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/$1
KEPT_GO=60
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT

"$bin/coverage" erase
"$bin/coverage" run -m pytest -q -n auto --dist loadfile --no-loadscope-reorder tests/unit
"$bin/coverage" combine --quiet 2>/dev/null
"$bin/coverage" report --skip-covered --sort=cover 2>/dev/null | tail -n 25

go=$("$bin/python" -m tests.bed go)
# The tests' binary is started again as the shim, and that leaves what it took there, too.
export GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 FLOX_TEST_COVERAGE=$data
(cd shim && "$go" test -count=1 -coverpkg=./... ./... -args -test.gocoverdir="$data" >/dev/null)
(cd shim && "$go" tool covdata textfmt -i="$data" -o="$data/profile")
total=$(cd shim && "$go" tool cover -func="$data/profile" | tail -n 1 | grep -oE '[0-9.]+')
echo "shim: $total % of the statements (kept: $KEPT_GO)"
awk -v total="$total" -v kept="$KEPT_GO" 'BEGIN { exit total < kept }'
