# Flox nodes on EKS (AL2023): the stock image, made so at the first boot.
# Then, once for the cluster: the RuntimeClass, and the reporter that lifts the startup taint:
#   kubectl apply -k daemonset/overlays/baked
variable "subnet_ids" {
  type = list(string)
}

data "aws_eks_cluster" "this" {
  name   = "demo"
  region = "eu-central-1"
}

module "flox_nodes" {
  source  = "terraform-aws-modules/eks/aws//modules/eks-managed-node-group"
  version = "~> 21.19"

  name                 = "flox"
  cluster_name         = data.aws_eks_cluster.this.name
  kubernetes_version   = "1.35"
  cluster_service_cidr = data.aws_eks_cluster.this.kubernetes_network_config[0].service_ipv4_cidr
  subnet_ids           = var.subnet_ids

  ami_type = "AL2023_x86_64_STANDARD"
  cloudinit_pre_nodeadm = [{
    content_type = "text/x-shellscript"
    content      = <<-EOT
      #!/bin/sh
      export FLOX_NODE_PAYLOAD='https://payloads.example.org/flox-node-0.1.0-x86_64.tar.gz'
      export FLOX_NODE_SHA256='0000000000000000000000000000000000000000000000000000000000000000'
      set -eu
      umask 022
      set -a # curl is to see a proxy that stands there
      [ ! -r /etc/flox-node/bootstrap.env ] || . /etc/flox-node/bootstrap.env
      set +a
      most_bytes=4294967296 # of a payload; what is more is something else, and would fill the node's disk
      mode=$${1-}
      state=/var/lib/flox-node
      work=$state/bootstrap
      fragment=/etc/eks/nodeadm.d/50-flox-node.yaml
      patience=$${FLOX_NODE_PATIENCE_S:-600}
      payload=$${FLOX_NODE_PAYLOAD-}
      : "$${FLOX_NODE_SHA256:=}"
      given=$(printf '%s' "$${FLOX_NODE_SHA256#sha256:}" | tr A-F a-f)
      token=
      started=$(date +%s)
      say() {
          printf 'flox-node: %s\n' "$*" >&2
          logger -t flox-node -- "$*" 2>/dev/null || :
          [ ! -w "$${FLOX_NODE_CONSOLE:-/dev/console}" ] || printf 'flox-node: %s\n' "$*" 2>/dev/null >"$${FLOX_NODE_CONSOLE:-/dev/console}" || :
      }
      fail() {
          say "$* This node is no Flox node: it joins its cluster without the handler flox."
          exit 1
      }
      phase() { say "$* ($(($(date +%s) - started)) s)"; }
      left() { # seconds until the patience ends
          echo $((patience - ($(date +%s) - started)))
      }
      digest_is() { # file digest
          [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2" ]
      }
      is_digest() { # text
          case $1 in *[!0-9a-f]*) return 1 ;; esac
          [ "$${#1}" = 64 ]
      }
      quoted() { # a value in curl's configuration
          printf '%s' "$1" | sed 's/[\\"]/\\&/g'
      }
      options() { # url
          printf 'url = "%s"\n' "$(quoted "$1")"
          [ -z "$${FLOX_NODE_CA-}" ] || printf 'cacert = "%s"\n' "$(quoted "$FLOX_NODE_CA")"
          if [ -n "$token" ]; then
              printf 'header = "Authorization: Bearer %s"\n' "$(quoted "$token")"
          elif [ -n "$${FLOX_NODE_BASIC_FILE-}" ]; then
              printf 'user = "%s"\n' "$(quoted "$(cat "$FLOX_NODE_BASIC_FILE")")"
          fi
      }
      request() { # url file curl's-own-options...: curl's exit code, 22 where the server refuses
          url=$1 file=$2
          shift 2
          remaining=$(left)
          [ "$remaining" -gt 0 ] || return 28
          case $url in http://*) protocols=http,https ;; file://*) protocols='file' ;; *) protocols=https ;; esac
          options "$url" | curl --config - --silent --show-error --fail --location --max-redirs 5 --output "$file" \
              --proto "=$protocols" --proto-redir "=$protocols" --connect-timeout 10 --speed-limit 1024 --speed-time "$${FLOX_NODE_STALL_S:-30}" \
              --max-filesize "$most_bytes" --max-time "$remaining" --write-out '%header{www-authenticate}' "$@" >"$work/challenge" 2>"$work/curl.err"
      }
      refusal() { # the HTTP status of the last request that was refused
          sed -n 's/.*returned error: \([0-9]*\).*/\1/p' "$work/curl.err"
      }
      ask() { # as `request`, with a token where a registry wants one
          asking=0
          request "$@" || asking=$?
          case $payload:$asking:$(refusal) in
          oci://*:22:401) log_in && request "$@" ;;
          *) return "$asking" ;;
          esac
      }
      log_in() {
          challenge=$(sed -n 's/^[Bb]earer */,/p' "$work/challenge")
          realm=$(challenged realm) token=
          case $realm in
          https://* | "$scheme://$host/"*) ;;
          '') return 22 ;;
          *) fail "the registry names $realm as the place to log in, which is not encrypted." ;;
          esac
          request "$realm" "$work/token" --get --data-urlencode "service=$(challenged service)" \
              --data-urlencode "scope=$(challenged scope)" || return
          for name in access_token token; do
              found=$(tr -d '\n' <"$work/token" | sed -n 's/.*"'$name'" *: *"\([^"]*\)".*/\1/p')
              token=$${found:-$token}
          done
          rm -f "$work/token"
          [ -n "$token" ] || fail "the registry's login answers without a token."
      }
      challenged() { # name
          printf '%s' "$challenge" | sed -n 's/.*, *'"$1"'="\([^"]*\)".*/\1/p'
      }
      patiently() { # what command...
          what=$1 pause=1
          shift
          while :; do
              code=0
              "$@" || code=$?
              [ "$code" != 0 ] || return 0
              status=$(refusal)
              case $code:$status in
              22:408 | 22:425 | 22:429 | 22:5??) ;;
              22:*) fail "$what is refused: HTTP $status." ;;
              23:* | 63:*) rm -f "$work"/*.part && fail "$what cannot be stored, is there space on the disk? $(told)." ;;
              3:* | 60:* | 77:*) fail "$what cannot be fetched: $(told)." ;;
              esac
              [ "$(left)" -gt "$pause" ] || fail "$what could not be fetched in $patience s: $(told)."
              sleep "$pause"
              [ "$pause" -ge 16 ] || pause=$((pause * 2))
          done
      }
      told() { # curl's last word, without what may be secret in it
          tail -n 1 "$work/curl.err" | sed 's/?[^ ]*//g'
      }
      resume() { # url file
          if [ -s "$2" ]; then
              ask "$1" "$2" --continue-at - || {
                  resumed=$?
                  case $resumed:$(cat "$work/curl.err") in 33:* | 36:* | 22:*416*) ;; *) return "$resumed" ;; esac
                  ! digest_is "$2" "$wanted" || return 0
                  rm -f "$2"
                  ask "$1" "$2"
              }
          else
              ask "$1" "$2"
          fi
      }
      fetch() { # url file
          [ -s "$2" ] && digest_is "$2" "$wanted" && return
          patiently "$(shown "$1")" resume "$1" "$2"
          digest_is "$2" "$wanted" && return
          rm -f "$2"
          patiently "$(shown "$1")" resume "$1" "$2"
          digest_is "$2" "$wanted" && return
          found=$(sha256sum <"$2" | cut -d' ' -f1)
          rm -f "$2"
          fail "$(shown "$1") has the SHA-256 $found, not $wanted; nothing was unpacked."
      }
      shown() { # url
          printf '%s' "$${1%%\?*}"
      }
      locate() {
          name=$${payload#oci://}
          name=$${name%@*}
          case $${name##*/} in *:*) name=$${name%:*} ;; esac
          host=$${name%%/*}
          scheme=https
          case $host in localhost | localhost:* | 127.*) scheme=http ;; esac
          base=$scheme://$host/v2/$${name#*/}
          patiently "$payload" ask "$base/manifests/sha256:$digest" "$work/manifest" \
              --header "Accept: application/vnd.oci.image.manifest.v1+json"
          digest_is "$work/manifest" "$digest" || fail "the registry's manifest is not the one that $payload names."
          layer=$(sed -n 's/.*"layers": *\[ *{\([^}]*\)} *\].*/\1/p' "$work/manifest")
          wanted=$(printf '%s' "$layer" | sed -n 's/.*"digest": *"sha256:\([0-9a-f]\{64\}\)".*/\1/p')
          case $layer in *'"application/vnd.flox-node.payload.v1.tar+'*) ;; *) wanted= ;; esac
          [ -n "$wanted" ] || fail "$payload is no payload of flox-node."
          [ "$${given:-$wanted}" = "$wanted" ] || fail "$payload has the SHA-256 $wanted, not $given."
          location=$base/blobs/sha256:$wanted
      }
      unpack() { # archive folder
          rm -rf "$2" && mkdir -p "$2" || return
          case $(od -An -tx1 -N4 "$1" | tr -d ' ') in
          28b52ffd)
              command -v zstd >/dev/null || fail "this machine has no zstd: use a payload in .tar.gz."
              zstd -dcq "$1" | tar -xf - -C "$2" || return
              ;;
          1f8b*) gzip -dcq "$1" 2>/dev/null | tar -xf - -C "$2" || return ;;
          *) fail "the payload is compressed with neither zstd nor gzip." ;;
          esac
          [ -s "$2/manifest.json" ] || fail "the archive is no payload."
      }
      hand_over() { # payload arguments...
          from=$1
          shift
          program=$(sed -n 's|.*"flox-node": *"\(/nix/store/[^"]*\)".*|\1|p' "$from/manifest.json")
          [ -n "$program" ] || fail "the payload holds no flox-node."
          root=$work/root
          mkdir -p "$root/nix/store" "$root/host" "$root/payload" "$root/proc" "$root/dev" "$root/tmp"
          unshare --mount --propagation slave sh -euc '
              root=$1 from=$2 program=$3
              shift 3
              mount --bind "$from/store" "$root/nix/store"
              mount --bind "$from" "$root/payload"
              mount --rbind / "$root/host"
              mount --rbind /proc "$root/proc"
              mount --rbind /dev "$root/dev"
              exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp chroot "$root" "$program" "$@"
          ' sh "$root" "$from" "$program" "$@" --host-root /host --payload /payload
      }
      is_done() {
          [ -e "$fragment" ] && [ -x /opt/flox-node/bin/flox-node ] && [ "$(cat "$state/bootstrapped" 2>/dev/null)" = "$digest" ]
      }
      [ -n "$payload" ] || fail "FLOX_NODE_PAYLOAD is not set."
      case $payload in
      oci://*@sha256:*) digest=$${payload##*@sha256:} ;;
      https://* | http://* | file://*) digest=$given ;;
      *) fail "FLOX_NODE_PAYLOAD is neither https:// nor file:// nor oci://...@sha256:..." ;;
      esac
      [ -n "$digest" ] || fail "FLOX_NODE_SHA256 is not set."
      if ! is_digest "$digest" || ! is_digest "$${given:-$digest}"; then fail "a SHA-256 has 64 hexadecimal digits."; fi
      for file in "$${FLOX_NODE_BEARER_FILE-}" "$${FLOX_NODE_BASIC_FILE-}" "$${FLOX_NODE_CA-}"; do
          [ -z "$file" ] || [ -r "$file" ] || fail "$file cannot be read."
      done
      [ -z "$${FLOX_NODE_BEARER_FILE-}" ] || token=$(cat "$FLOX_NODE_BEARER_FILE")
      mkdir -p "$state"
      chmod 700 "$state"
      exec 9<"$state"
      flock -w "$patience" 9 || fail "another bootstrap does not end."
      if is_done; then
          say "this node has this payload already."
          exit 0
      fi
      mkdir -p "$work"
      wanted=$given
      location=$payload
      case $payload in oci://*) locate ;; esac
      archive=$work/$wanted.part
      fetch "$location" "$archive"
      phase "fetched and verified"
      unpack "$archive" "$work/payload" || fail "the payload cannot be unpacked: is there space on the disk?"
      phase "unpacked"
      if [ "$mode" != --image-build ] && systemctl is-active --quiet kubelet 2>/dev/null; then
          set --
      else
          set -- --image-build
      fi
      hand_over "$work/payload" install "$@" || fail "the installation failed, see above."
      rmdir "$work/root/host" && rm -rf "$work"
      printf '%s\n' "$digest" >"$state/bootstrapped"
      phase "installed"
      if [ "$mode" != --image-build ] && [ $# -gt 0 ]; then
          { systemctl daemon-reload && systemctl start --no-block flox-node-boot.service flox-node-gc.timer; } ||
              say "systemd does not start the units of flox-node; the next boot does."
      fi
    EOT
  }]

  instance_types = ["m7i.large"]
  min_size       = 0
  desired_size   = 1
  max_size       = 10

  labels = {
    "flox.dev/enabled" = "true"
  }
  taints = {
    flox = {
      key    = "startup-taint.cluster-autoscaler.kubernetes.io/flox"
      effect = "NO_SCHEDULE"
    }
  }

  block_device_mappings = {
    xvda = {
      device_name = "/dev/xvda"
      ebs = {
        volume_size = 40
        volume_type = "gp3"
        encrypted   = true
      }
    }
  }
}
