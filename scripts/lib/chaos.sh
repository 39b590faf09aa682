# shellcheck shell=bash
# Faults of the broker, often, on more than one release of RabbitMQ; and a table of what came of them.

#: chaos [RELEASE]... | RabbitMQ killed, frozen and restarted under load, many times; takes long: the host's own ("host") and of other Debian releases (trixie has 4.0)
cmd_chaos() {
  need_cargo
  local releases=("$@") release table failed=0
  (($# > 0)) || releases=(host trixie)
  needs_groups "${DEPS_DEFAULT_GROUPS[@]}" golden
  table="$(mktemp)"
  for release in "${releases[@]}"; do
    chaos_on "$release" "$table" || failed=1
  done
  printf '\n| fault | times | jobs | publishes repeated | lost | doubled | leaked | recovered (median) | (longest) |\n'
  printf '|---|---|---|---|---|---|---|---|---|\n'
  cat "$table"
  rm -f -- "$table"
  return "$failed"
}

chaos_on() (
  if [[ $1 != host ]]; then
    STOKER_RABBITMQ_ROOT="$(cmd_rabbitmq "$1")" || exit 1
    export STOKER_RABBITMQ_ROOT
  fi
  note "chaos: RabbitMQ of $1"
  printf '| **RabbitMQ of %s** | | | | | | | | |\n' "$1" >>"$2"
  export STOKER_CHAOS_OFTEN=1 STOKER_CHAOS_TABLE="$2" STOKER_TEST_BROKER_CTL="$STOKER_ROOT/scripts/dev"
  cd "$STOKER_ROOT" || exit 1
  cargo test --locked --workspace --test chaos -- --include-ignored
)
