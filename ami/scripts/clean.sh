#!/bin/sh
# What no two nodes may share, and what only the build needed; as EKS' own builds remove it.
# https://github.com/awslabs/amazon-eks-ami/blob/main/templates/shared/provisioners/cleanup.sh
set -eu

# A log that auditd still writes to would keep the build's denials, and get new ones.
systemctl stop auditd 2>/dev/null || service auditd stop 2>/dev/null || :
: >/var/log/audit/audit.log 2>/dev/null || :

rm -rf /var/cache/dnf /var/cache/yum /var/lib/dnf/history*
rm -rf /var/lib/cloud/data /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem
rm -rf /var/log/cloud-init.log /var/log/cloud-init-output.log /var/log/secure /var/log/wtmp /var/log/messages
rm -rf /etc/hostname /etc/resolv.conf
rm -rf /etc/ssh/ssh_host*
rm -rf /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
rm -rf /root/.bash_history /home/*/.bash_history
rm -rf /var/lib/flox-node/bootstrap /var/log/flox-node /etc/flox-node/bootstrap.env
: >/etc/machine-id
sync
