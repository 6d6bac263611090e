# Puts containerd's old configuration back when a change of it was never confirmed.
#
#   sh flox-node-rollback.sh boot    by flox-node-rollback.service, before containerd: a power cut came in between
#   sh flox-node-rollback.sh now     by flox-node-deadline.service: the time is up, and the command was killed or hangs
#   sh flox-node-rollback.sh sweep   by flox-node-deadline.service: the command did it itself, but for what hangs
#
# /var/lib/flox-node/armed is written, with the old bytes beside it, before anything is changed. Confirming renames it;
# so does this script; only one of them can. What was begun is named `firing`, and is begun again after a power cut.
#
# Nothing of /nix or /opt is used: it works when all of that is broken. A second argument is put before every path.
set -u
umask 022
mode=$1
root=${2-}
tab=$(printf '\t')

end_tree() { # process
    children=$(grep -l "^PPid:$tab$1\$" "$root"/proc/[0-9]*/status 2>/dev/null)
    kill -9 "$1" 2>/dev/null
    for child in $children; do
        child=${child%/status}
        end_tree "${child##*/}"
    done
}

# `containerd-shim-runc-v2 -info` asks a handler's program for its features and waits for it for ever. KillMode=process
# spares it when its containerd goes, as it spares pods; then PID 1 is its parent, and nobody reads its answer.
end_unheard_questions() {
    for status in $(grep -l "^Name:${tab}containerd-shim" "$root"/proc/[0-9]*/status 2>/dev/null); do
        shim=${status%/status}
        grep -q "^PPid:${tab}1\$" "$status" 2>/dev/null || continue
        tr '\0' '\n' <"$shim/cmdline" 2>/dev/null | grep -qxe -info && end_tree "${shim##*/}"
    done
}

if [ "$mode" = sweep ]; then
    end_unheard_questions
    exit 0
fi
cd "$root/var/lib/flox-node" 2>/dev/null || exit 0
[ -e armed ] && mv -f armed firing 2>/dev/null
[ -e firing ] || exit 0
echo "A change of containerd's configuration was not confirmed: its old configuration comes back."
failed=0

# In place: that keeps mode, owner and label, works for a file that is a mount point, and needs no space on a full disk.
put_back() { # backup, permissions, path
    present=yes
    [ -e "$3" ] || present=
    if [ "$present" ] && [ ! -e "$1.replaced" ]; then cp -p "$3" "$1.replaced" 2>/dev/null; fi
    dd if="$1" of="$3" bs=64k conv=notrunc,fsync 2>/dev/null &&
        dd if=/dev/null of="$3" bs=1 seek="$(wc -c <"$1")" conv=fsync 2>/dev/null || return 1
    [ "$present" ] || chmod "$2" "$3"
}

while IFS="$tab" read -r what one two path; do
    case $what in
    file) put_back "$one" "$two" "$root$path" ;;
    gone) rm -f "$root$path" ;;
    folder) [ ! -d "$root$path" ] || rmdir "$root$path" 2>/dev/null || true ;;
    *) continue ;;
    esac || { echo "$path cannot be put back."; failed=1; }
done <firing

if grep -q '/etc/systemd/' firing; then systemctl daemon-reload || failed=1; fi # a drop-in named the configuration
if [ "$mode" != boot ]; then
    while IFS="$tab" read -r what one two unit; do
        case $what in
        restart)
            systemctl reset-failed "$unit" 2>/dev/null
            systemctl restart "$unit"
            ;;
        active) # a restart after a failed start leaves down what Requires= it
            systemctl is-active --quiet "$unit" || { systemctl reset-failed "$unit" 2>/dev/null; systemctl start "$unit"; }
            ;;
        *) continue ;;
        esac || { echo "$unit does not start."; failed=1; }
    done <firing
    end_unheard_questions
fi

[ "$failed" = 0 ] || exit 1
{ echo "mode=$mode"; echo "at=$(date -u +%Y-%m-%dT%H:%M:%SZ)"; } >last-rollback 2>/dev/null
rm -f firing
