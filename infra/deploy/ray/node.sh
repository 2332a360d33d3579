#!/bin/sh
# A node of a static Ray cluster: one head, any number of workers, started by hand or by systemd (the units beside this).
#
#   MEDLOOM_RAY_IP=10.0.0.1 node.sh head                        # num-cpus 0: steps run on workers only
#   MEDLOOM_RAY_IP=10.0.0.2 MEDLOOM_RAY_HEAD=10.0.0.1 node.sh worker
#
# The address is this machine's own on the private network between the nodes, chosen on purpose: Ray binds 127.0.0.1 and
# this address, and several of its ports all addresses, whatever it is told. So two locks: the token, without which no
# node starts here, and the firewall, which must close these ports to all but the nodes: 6379-6384, 20000-20999.
# The same token file on every node, 0600: ray get-auth-token --generate > /etc/medloom/ray-token
set -eu

refuse() { echo "node.sh: $1" >&2; exit 78; }

kind=${1:-}
address=${MEDLOOM_RAY_IP:-}
case $kind in head | worker) ;; *) refuse "say head or worker" ;; esac
case $address in
  "") refuse "set MEDLOOM_RAY_IP to this machine's address on the private network" ;;
  0.0.0.0 | ::) refuse "MEDLOOM_RAY_IP=$address is every network this machine is on; name one address" ;;
esac
RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-/etc/medloom/ray-token}
[ -s "$RAY_AUTH_TOKEN_PATH" ] || refuse "no token at $RAY_AUTH_TOKEN_PATH: whoever reaches a port of Ray runs code on it"
[ "${RAY_AUTH_MODE:-token}" = token ] || refuse "RAY_AUTH_MODE=$RAY_AUTH_MODE would open the cluster to its network"
export RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 DO_NOT_TRACK=1

set -- start --block --disable-usage-stats --node-ip-address="$address" \
  --node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382 \
  --dashboard-agent-listen-port=6383 --dashboard-agent-grpc-port=6384 \
  --min-worker-port=20000 --max-worker-port=20999 --object-store-memory="${MEDLOOM_RAY_STORE:-536870912}"
if [ "$kind" = head ]; then
  exec ray "$@" --head --port=6379 --num-cpus=0 --num-gpus=0 --include-dashboard=false
fi
[ -n "${MEDLOOM_RAY_HEAD:-}" ] || refuse "set MEDLOOM_RAY_HEAD to the head node's address"
exec ray "$@" --address="$MEDLOOM_RAY_HEAD:6379"
