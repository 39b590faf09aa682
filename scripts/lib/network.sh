# shellcheck shell=bash
# A network of a cluster's own, so that a node can be cut off as a broken switch does it: each node lives in a namespace,
# all are joined in one more, where their clients are, too. Nothing of it touches the host's network.

# Inside these namespaces only, so they conflict with nothing.
node_address() {
  if is_apart; then printf '10.99.%s.2\n' "${BROKER_NAME##*-}"; else printf '127.0.0.1\n'; fi
}

# Long names may end in an address, which nobody has to resolve.
erlang_name() {
  printf 'stoker-%s@%s\n' "$BROKER_NAME" "$(if is_apart; then node_address; else printf 'localhost'; fi)"
}

is_apart() { [[ -f $BROKER_DIR/network ]]; }

# join_network CLUSTER NUMBER: the node's namespace, with a way into the cluster's.
join_network() {
  local middle="st-$1" own="st-$BROKER_NAME" number="$2"
  is_root || die "broker: a network of its own needs root"
  printf '%s\n' "$middle" >"$BROKER_DIR/network"
  use_node "$BROKER_NAME"
  [[ ! -e /run/netns/$own ]] || return 0
  [[ -e /run/netns/$middle ]] || make_middle "$middle"
  ip netns add "$own"
  ip -n "$own" link set lo up
  ip -n "$middle" link add "node$number" type veth peer name eth0 netns "$own"
  ip -n "$middle" addr add "10.99.$number.1/24" dev "node$number"
  ip -n "$middle" link set "node$number" up
  ip -n "$own" addr add "10.99.$number.2/24" dev eth0
  ip -n "$own" link set eth0 up
  ip -n "$own" route add default via "10.99.$number.1"
}

make_middle() {
  ip netns add "$1"
  ip -n "$1" link set lo up
  ip netns exec "$1" sysctl -qw net.ipv4.ip_forward=1
  ip netns exec "$1" nft -f - <<'RULES'
table inet cut {
  set nodes { type ipv4_addr; }
  chain between { type filter hook forward priority 0; ip saddr @nodes drop; ip daddr @nodes drop; }
}
RULES
}

# Packets vanish: neither side is told.
broker_cut() { set_cut add; }
broker_heal() { set_cut delete; }

set_cut() {
  is_apart || die "broker: $BROKER_NAME has no network of its own"
  ip netns exec "$(cat "$BROKER_DIR/network")" nft "$1" element inet cut nodes "{ $(node_address) }"
}

# The middle goes with the first of them: they are wiped together.
leave_network() {
  is_apart || return 0
  local name
  for name in "st-$BROKER_NAME" "$(cat "$BROKER_DIR/network")"; do
    [[ ! -e /run/netns/$name ]] || ip netns delete "$name"
  done
}
