# shellcheck shell=bash
# Faults of broker, host and network, often, on more than one release of RabbitMQ; and a table of what came of them.

#: chaos [RELEASE]... | brokers, workers, disks and networks broken under load, many times; on the host's RabbitMQ ("host") and those of other Debian releases (trixie has 4.0). About 20 minutes each
#: | STOKER_CHAOS_<FAULT>=N changes how often one is made; the names stand in tests/tests/chaos
cmd_chaos() {
  need_cargo
  local releases=("$@") release failed=0
  (($# > 0)) || releases=(host trixie)
  CHAOS_DIR="$(ensure_dir "$LOGS_DIR")/chaos-$(date +%Y%m%d-%H%M%S)"
  mkdir -p "$CHAOS_DIR"
  needs_groups "${DEPS_DEFAULT_GROUPS[@]}" golden
  needs_images probe
  needs_tools firecracker
  steps_start packages build images
  packages_step
  beside preparation prepare
  build_for_tests --test chaos || die "the build failed; all that cargo said is in $(log_of build)"
  images_step
  for release in "${releases[@]}"; do
    chaos_on "$release" || failed=1
  done
  for release in "${releases[@]}"; do
    printf '\nRabbitMQ of %s\n\n' "$release"
    cat "$CHAOS_DIR/$release.md" 2>/dev/null || printf 'no row was written\n'
  done
  note "what each run said is in ${CHAOS_DIR#"$STOKER_ROOT"/}"
  return "$failed"
}

# Without a limit in time a hanging test would hide the other rows.
readonly CHAOS_SECONDS=3600

chaos_on() (
  export STOKER_CHAOS_OFTEN=1 STOKER_CHAOS_TABLE="$CHAOS_DIR/$1.md" STOKER_TEST_BROKER_CTL="$STOKER_ROOT/scripts/dev"
  # What the host's is upgraded to; without it that test says so.
  STOKER_RABBITMQ_NEXT="$(cmd_rabbitmq trixie)" || warn "chaos: no RabbitMQ to upgrade to"
  export STOKER_RABBITMQ_NEXT
  if [[ $1 != host ]]; then
    STOKER_RABBITMQ_ROOT="$(cmd_rabbitmq "$1")" || exit 1
    export STOKER_RABBITMQ_ROOT
  fi
  export STOKER_TEST_IMAGES="$IMAGES_DIR"
  STOKER_TEST_BIN_DIR="$(binaries_dir)"
  export STOKER_TEST_BIN_DIR
  export_tool STOKER_TEST_FIRECRACKER firecracker
  # A failure that is seen once has to tell its reason.
  export STOKER_CHAOS_LOG="$CHAOS_DIR/$1.workers.log"
  note "chaos: RabbitMQ of $1; STOKER_CHAOS_TABLE=$STOKER_CHAOS_TABLE"
  cd "$STOKER_ROOT" || exit 1
  timeout "$CHAOS_SECONDS" cargo test --locked --workspace --no-fail-fast --test chaos -- --include-ignored --nocapture --test-threads 1 2>&1 |
    tee "$CHAOS_DIR/$1.log"
)
