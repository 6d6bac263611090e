# The kernel's log, the network's settings (they are the node's own: it has its network namespace), and the values that
# the kubelet sets at its start and that are the whole machine's: the node sees them set, the machine keeps its own.
set -eu
[ -e /dev/kmsg ] || mknod /dev/kmsg c 1 11
mountpoint -q /proc/sys/net || mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,rw /proc/sys/net
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=/run/node-kernel/${setting%=*}
    mkdir -p "${file%/*}"
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done
