#!/usr/bin/env bash
# gofmt and go vet for the Go modules of this repository, with the Go that the build uses.
set -euo pipefail
cd "$(dirname "$0")/.."
go=$(.venv/bin/python -m tests.bed go)
export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
unformatted=$("$(dirname "$(readlink -f "$go")")/gofmt" -l shim tests docs)
[ -z "$unformatted" ] || { printf 'gofmt would change:\n%s\n' "$unformatted"; exit 1; }
# What is compiled inside another module is vetted there (tests/bed/kind.py).
for module in shim tests/doubles/flox-activations tests/doubles/gitlab-helper; do
    (cd "$module" && "$go" vet ./...)
done
