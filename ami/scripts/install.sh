#!/bin/sh
# The payload, the shim, the policy, /nix, the units and nodeadm's fragment into the image. Starts nothing.
set -eu
exec sh "$(dirname "$0")/bootstrap.sh" --image-build
