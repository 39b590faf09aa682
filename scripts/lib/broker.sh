# shellcheck shell=bash
# A private RabbitMQ node: own name, ports, data, cookie and epmd, loopback only, any user.
# Several can run side by side; nothing is shared with a RabbitMQ of the host.

# The wrappers in /usr/sbin switch to the user rabbitmq and meet the wrong cookie.
readonly RABBITMQ_BIN=/usr/lib/rabbitmq/bin/rabbitmq-server
readonly BROKER_START_SECONDS=60
readonly BROKER_STOP_SECONDS=20
# Start fails when another process takes a chosen port first; then new ports are chosen.
readonly BROKER_START_TRIES=3

#: broker start|stop|restart|kill9 [--name N] | a private RabbitMQ node (start prints its URL)
#: broker cluster [--name N] | three nodes that are one broker, N-1 to N-3 (prints its URL); each obeys the other verbs
#: broker cluster --apart [--name N] | the same on a network of their own, which can be cut (root; reached from inside only)
#: broker cut|heal [--name N] | of such a cluster: takes the node away from the others, who still reach clients; undoes it
#: broker pause|resume [--name N] | freeze and thaw the node (SIGSTOP, SIGCONT)
#: | STOKER_BROKER_PLUGINS=rabbitmq_shovel at its start enables a plugin of RabbitMQ's
#: broker status|env|dir [--name N] | is it running; export lines for a shell; where its data is
#: broker ctl [--name N] -- ARGUMENTS | rabbitmqctl for that node
#: broker wipe [--name N] | stop the node and delete its data
cmd_broker() {
  local verb="${1:-}" name=dev
  CTL_ARGUMENTS=()
  CLUSTER_APART=no
  [[ $# -gt 0 ]] && shift
  while (($# > 0)); do
    case "$1" in
      --name)
        name="${2:-}"
        shift
        ;;
      --name=*) name="${1#--name=}" ;;
      --apart) CLUSTER_APART=yes ;;
      --)
        CTL_ARGUMENTS=("${@:2}")
        break
        ;;
      *) die_usage "broker: unknown argument: $1" ;;
    esac
    shift
  done
  # The name becomes part of an Erlang node name and of a path.
  [[ $name =~ ^[a-z0-9][a-z0-9-]{0,40}$ ]] || die_usage "broker: a name is 1-41 of a-z 0-9 -"
  use_node "$name"
  case "$verb" in
    start | cluster | stop | restart | kill9 | pause | resume | cut | heal | status | env | dir | ctl | wipe) "broker_$verb" ;;
    *) die_usage "broker: start, cluster, stop, restart, kill9, pause, resume, cut, heal, status, env, dir, ctl or wipe" ;;
  esac
}

broker_url() { printf 'amqp://guest:guest@%s:%s/%%2f\n' "$(node_address)" "$AMQP_PORT"; }

broker_start() {
  [[ -x ${STOKER_RABBITMQ_ROOT:-}$RABBITMQ_BIN ]] ||
    die "broker: there is no ${STOKER_RABBITMQ_ROOT:-}$RABBITMQ_BIN; run: scripts/dev deps broker"
  mkdir -p "$BROKER_DIR"/{home,mnesia,log}
  local try
  for ((try = 1; try <= BROKER_START_TRIES; try++)); do
    load_ports || choose_ports
    if broker_running; then
      broker_url
      return 0
    fi
    spawn_node
    if wait_until "$BROKER_START_SECONDS" node_answers_or_died && amqp_answers; then
      broker_url
      return 0
    fi
    warn "broker: $BROKER_NAME did not start (try $try), see $BROKER_DIR/log"
    broker_stop
    # A node's data belongs to its name, not to its ports, so new ports keep the data.
    rm -f "$BROKER_DIR/ports"
  done
  tail -n 20 "$BROKER_DIR/log/console.log" >&2 || true
  die "broker: $BROKER_NAME gave up after $BROKER_START_TRIES tries"
}

# Its nodes find each other by this list when they first start; later they know.
broker_cluster() {
  local base="$BROKER_NAME" nodes=() hosts=() starting=() node epmd_port
  for node in 1 2 3; do nodes+=("$base-$node"); done
  # They meet at one epmd, and trust who has their cookie.
  epmd_port="$(free_port)"
  for node in "${nodes[@]}"; do
    use_node "$node"
    mkdir -p "$BROKER_DIR"/{home,mnesia,log}
    [[ $CLUSTER_APART == no ]] || join_network "$base" "${node##*-}"
    load_ports || choose_ports "$epmd_port"
    [[ -f $BROKER_DIR/home/.erlang.cookie ]] || (umask 377 && printf '%s' "$base" >"$BROKER_DIR/home/.erlang.cookie")
    printf '%s\n' "${nodes[@]}" >"$BROKER_DIR/cluster"
    hosts+=("$(node_address):$AMQP_PORT")
  done
  for node in "${nodes[@]}"; do
    use_node "$node"
    # Side by side: RabbitMQ 4 waits for the others when it first starts.
    broker_start >/dev/null &
    starting+=($!)
  done
  for node in "${starting[@]}"; do wait "$node" || die "broker: a node of $base did not start"; done
  printf 'amqp://guest:guest@%s/%%2f\n' "$(IFS=, && printf '%s' "${hosts[*]}")"
}

use_node() {
  BROKER_NAME="$1"
  BROKER_DIR="$RUN_DIR/broker/$1"
  # `env` alone changes nothing: what comes before a command cannot be nothing in every bash.
  ON_ITS_NETWORK=(env)
  [[ ! -f $BROKER_DIR/network ]] || ON_ITS_NETWORK=("$(find_command ip)" netns exec "st-$BROKER_NAME")
}

broker_stop() {
  local pid
  if pid="$(broker_pid)"; then
    kill -CONT "$pid" 2>/dev/null || true
    kill -TERM "$pid" 2>/dev/null || true
    wait_until "$BROKER_STOP_SECONDS" process_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait_until 5 process_gone "$pid" || warn "broker: process $pid does not end"
  fi
  rm -f "$BROKER_DIR/pid"
  stop_epmd
}

broker_restart() {
  broker_stop
  broker_start
}

broker_kill9() { signal_node KILL && wait_until 5 process_gone "$NODE_PID"; }
broker_pause() { signal_node STOP; }
broker_resume() { signal_node CONT; }

broker_status() {
  if load_ports && broker_running; then
    printf 'running %s pid %s\n' "$(broker_url)" "$(broker_pid)"
  else
    printf 'stopped\n'
    return 1
  fi
}

broker_env() {
  load_ports || die "broker: $BROKER_NAME was never started"
  printf "export STOKER_TEST_AMQP_URL='%s'\n" "$(broker_url)"
  if [[ -f $BROKER_DIR/tls/server.pem ]]; then
    printf "export STOKER_TEST_AMQPS_URL='amqps://guest:guest@127.0.0.1:%s/%%2f'\n" "$TLS_PORT"
    printf "export STOKER_TEST_AMQPS_CA='%s'\n" "$BROKER_DIR/tls/ca.pem"
  fi
  printf "export STOKER_TEST_BROKER_NAME='%s'\n" "$BROKER_NAME"
  printf "export STOKER_TEST_BROKER_CTL='%s'\n" "$STOKER_ROOT/scripts/dev"
}

broker_dir() { printf '%s\n' "$BROKER_DIR"; }

# As with the server: the wrapper in /usr/sbin meets the wrong cookie.
broker_ctl() {
  load_ports || die "broker: $BROKER_NAME was never started"
  local inside=()
  mapfile -t inside < <(rabbitmq_release_prefix "$BROKER_DIR")
  "${ON_ITS_NETWORK[@]}" env HOME="$BROKER_DIR/home" RABBITMQ_NODENAME="$(erlang_name)" \
    RABBITMQ_USE_LONGNAME="$(is_apart && printf true)" ERL_EPMD_PORT="$EPMD_PORT" ERL_EPMD_ADDRESS="$(node_address)" \
    RABBITMQ_CONF_ENV_FILE="$BROKER_DIR/none.conf" \
    ${inside[@]+"${inside[@]}"} "${RABBITMQ_BIN%-server}ctl" ${CTL_ARGUMENTS[@]+"${CTL_ARGUMENTS[@]}"}
}

broker_wipe() {
  broker_stop
  leave_network
  rm -rf -- "$BROKER_DIR"
}

signal_node() {
  NODE_PID="$(broker_pid)" || die "broker: $BROKER_NAME is not running"
  kill "-$1" "$NODE_PID"
}

# A pid file outlives its process, and pids are reused: the process must also be this node.
broker_pid() {
  local pid
  pid="$(cat "$BROKER_DIR/pid" 2>/dev/null)" || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  # Not through a pipe: grep ends at the match, and whoever still writes to it would fail the pipeline.
  grep -qzxF "RABBITMQ_PID_FILE=$BROKER_DIR/pid" "/proc/$pid/environ" 2>/dev/null || return 1
  printf '%s\n' "$pid"
}

broker_running() { broker_pid >/dev/null && amqp_answers; }

# Ends the wait early when the server gave up by itself.
node_answers_or_died() { amqp_answers || process_gone "$SPAWNED_PID"; }

# A listening port is not yet a broker: the protocol header must be answered by a method
# frame (first byte 1).
amqp_answers() {
  # shellcheck disable=SC2016 # the inner shell expands its own arguments
  [[ $(timeout 2 "${ON_ITS_NETWORK[@]}" bash -c '
    exec 3<>"/dev/tcp/$1/$2" || exit 1
    printf "AMQP\0\0\11\1" >&3
    head -c 1 <&3 | od -An -tu1
  ' probe "$(node_address)" "$AMQP_PORT" 2>/dev/null | tr -d ' ') == 1 ]]
}

load_ports() {
  [[ -f $BROKER_DIR/ports ]] || return 1
  read -r AMQP_PORT DIST_PORT EPMD_PORT TLS_PORT <"$BROKER_DIR/ports"
}

choose_ports() {
  AMQP_PORT="$(free_port)"
  DIST_PORT="$(free_port)"
  EPMD_PORT="${1:-$(free_port)}"
  TLS_PORT="$(free_port)"
  printf '%s %s %s %s\n' "$AMQP_PORT" "$DIST_PORT" "$EPMD_PORT" "$TLS_PORT" >"$BROKER_DIR/ports"
}

# Below the kernel's ephemeral range, so that no outgoing connection takes the port meanwhile.
free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
      printf '%s\n' "$port"
      return 0
    }
  done
  die "broker: found no free port"
}

write_node_config() {
  cat >"$BROKER_DIR/rabbitmq.conf" <<CONF
vm_memory_high_watermark.absolute = 768MiB
disk_free_limit.absolute = 64MiB
log.file.rotation.size = 10485760
log.file.rotation.count = 2
CONF
  if [[ -f $BROKER_DIR/cluster ]]; then
    # Without this, nodes that lost sight of each other stay apart until each is restarted.
    printf 'cluster_partition_handling = pause_minority\n'
    # Seconds after which a node that does not answer is taken for gone; 60 by default.
    printf 'net_ticktime = 8\n'
    printf 'cluster_formation.peer_discovery_backend = classic_config\n'
    # Its clients come from within its network, which nothing else reaches.
    ! is_apart || printf 'loopback_users = none\n'
    local node number=0
    while read -r node; do
      number=$((number + 1))
      printf 'cluster_formation.classic_config.nodes.%d = %s\n' "$number" "$(use_node "$node" && erlang_name)"
    done <"$BROKER_DIR/cluster"
  fi >>"$BROKER_DIR/rabbitmq.conf"
  if [[ -n ${TLS_PORT:-} ]] && make_certificates; then
    cat >>"$BROKER_DIR/rabbitmq.conf" <<CONF
listeners.ssl.1 = $(node_address):$TLS_PORT
ssl_options.certfile = $BROKER_DIR/tls/server.pem
ssl_options.keyfile = $BROKER_DIR/tls/server.key
CONF
  fi
  printf '[%s].\n' "${STOKER_BROKER_PLUGINS:-}" >"$BROKER_DIR/enabled_plugins"
}

# A CA and a certificate for 127.0.0.1, new with the node and only good for it.
make_certificates() {
  have openssl || return 1
  local dir="$BROKER_DIR/tls"
  [[ ! -f $dir/server.pem ]] || return 0
  mkdir -p "$dir"
  local new=(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30)
  "${new[@]}" -subj "/CN=Stoker test CA" -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>>"$BROKER_DIR/log/openssl.log" &&
    "${new[@]}" -subj "/CN=stoker-$BROKER_NAME" -addext "subjectAltName=IP:127.0.0.1,DNS:localhost" \
      -addext "basicConstraints=critical,CA:FALSE" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" \
      -keyout "$dir/server.key" -out "$dir/server.pem" 2>>"$BROKER_DIR/log/openssl.log"
}

spawn_node() {
  write_node_config
  rm -f "$BROKER_DIR/pid"
  local inside=()
  mapfile -t inside < <(rabbitmq_release_prefix "$BROKER_DIR")
  # No busy waiting of idle schedulers: tests share few cores with the node. Nodes talk over loopback only.
  local erl_args
  erl_args="+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {$(node_address | tr . ,)}"
  "${ON_ITS_NETWORK[@]}" env -u RABBITMQ_CONFIG_FILES \
    HOME="$BROKER_DIR/home" \
    RABBITMQ_NODENAME="$(erlang_name)" RABBITMQ_USE_LONGNAME="$(is_apart && printf true)" \
    RABBITMQ_NODE_IP_ADDRESS="$(node_address)" RABBITMQ_NODE_PORT="$AMQP_PORT" \
    RABBITMQ_DIST_PORT="$DIST_PORT" ERL_EPMD_PORT="$EPMD_PORT" ERL_EPMD_ADDRESS="$(node_address)" \
    RABBITMQ_MNESIA_BASE="$BROKER_DIR/mnesia" RABBITMQ_LOG_BASE="$BROKER_DIR/log" \
    RABBITMQ_PID_FILE="$BROKER_DIR/pid" ERL_CRASH_DUMP="$BROKER_DIR/log/erl_crash.dump" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$BROKER_DIR/enabled_plugins" \
    RABBITMQ_CONFIG_FILE="$BROKER_DIR/rabbitmq" RABBITMQ_CONF_ENV_FILE="$BROKER_DIR/none.conf" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$erl_args" \
    setsid ${inside[@]+"${inside[@]}"} "$RABBITMQ_BIN" </dev/null >"$BROKER_DIR/log/console.log" 2>&1 &
  SPAWNED_PID=$!
}

# epmd is a daemon of its own that every node leaves behind.
stop_epmd() {
  load_ports || return 0
  have epmd || return 0
  ERL_EPMD_PORT="$EPMD_PORT" "${ON_ITS_NETWORK[@]}" epmd -kill >/dev/null 2>&1 || true
}
