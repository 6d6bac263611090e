#!/bin/sh
# The last step of a build: SELinux types, then a judgement. Fails the build with what is wrong.
set -eu

# After everything else that writes: files that were moved here carry the type of where they came from.
if command -v selinuxenabled >/dev/null && selinuxenabled; then
    restorecon -RF /etc/eks /etc/systemd/system
    for path in /etc/eks/nodeadm.d/50-flox-node.yaml /etc/systemd/system/flox-node-*; do
        matchpathcon -V "$path"
    done
fi
# The other types are no part of the system's policy: /nix and /opt/flox-node are judged by flox-node itself.
/opt/flox-node/bin/flox-node status --image
