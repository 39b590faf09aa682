# shellcheck shell=bash
# Starts Stoker from a fresh clone.

#: up [--driver D] [--broker amqp] [...] | install, build and run everything; other arguments go to `stoker up`
cmd_up() {
  need_cargo
  local args=("$@")
  plan_up "$@"
  packages_step
  beside preparation prepare
  if ((${#NEEDED_IMAGES[@]} > 0)); then
    build_step "stoker, stoker-worker and the guest agent" "the guest kernel" \
      build_with_agent --bin stoker --bin stoker-worker || build_failed
  else
    build_step "stoker and stoker-worker" "" cargo_build --bin stoker --bin stoker-worker || build_failed
  fi
  if ((${#NEEDED_IMAGES[@]} > 0)); then images_step; else finish_preparation; fi
  need_to_run
  if wants_private_broker "$@"; then
    local url
    url="$(cmd_broker start --name dev)"
    note "up: broker at $url, stop it with: scripts/dev broker stop"
    mapfile -t args < <(with_broker_url "$url" "$@")
  fi
  local firecracker
  firecracker="$(tool_path firecracker)"
  [[ -z $firecracker ]] || args+=(--firecracker "$firecracker")
  step_begin
  step_says "starting stoker up ($(since_start) since the start)"
  exec "$(binaries_dir)/stoker" up --images "$IMAGES_DIR" --data "$STOKER_DIR/data" ${args[@]+"${args[@]}"}
}

# Simulated VMs need neither images nor what boots them.
plan_up() {
  local last="first VM"
  [[ " $* " != *" --no-vm "* ]] || last=stoker
  needs_groups build
  wants_private_broker "$@" && needs_groups broker
  wants_fetched_firecracker "$@" && needs_tools firecracker
  if [[ " $* " == *simulated* ]]; then
    steps_start packages build "$last"
    return 0
  fi
  needs_groups run image
  needs_images linux-minimal probe
  if [[ " $* " == *" --image golden "* || " $* " == *" --image=golden "* ]]; then
    needs_groups golden
    needs_images golden
  fi
  steps_start packages build image "$last"
}

# `--broker amqp` without a URL asks for the private node; a URL is somebody's own broker.
wants_private_broker() {
  [[ " $* " == *" --broker amqp "* || " $* " == *" --broker=amqp "* ]]
}

# The driver is asked for and nobody says where its program is.
wants_fetched_firecracker() {
  [[ " $* " == *" --driver firecracker "* || " $* " == *" --driver=firecracker "* ]] &&
    [[ " $* " != *" --firecracker"* && -z ${STOKER_FIRECRACKER:-} ]] && ! have firecracker
}

with_broker_url() {
  local url="$1" argument
  shift
  for argument in "$@"; do
    case "$argument" in
      amqp) printf '%s\n' "$url" ;;
      --broker=amqp) printf -- '--broker=%s\n' "$url" ;;
      *) printf '%s\n' "$argument" ;;
    esac
  done
}

#: bench [arguments] | build in release mode and run the benchmarks, with a private broker; those that take long only by name (--only growth, power-loss, boots or soak --minutes N)
cmd_bench() {
  need_cargo
  local -x STOKER_PROFILE=release
  local status=0
  needs_groups run build image broker
  needs_images linux-minimal probe
  needs_tools firecracker
  steps_start packages build image broker benchmarks
  packages_step
  beside preparation prepare
  build_step "every program, in release mode" "the guest kernel" build_with_agent --bins || build_failed
  images_step
  export_test_environment bench
  step_begin
  step_says "as README.md lists them"
  (cd "$STOKER_ROOT" && "$(binaries_dir)/stoker-bench" "$@") || status=$?
  step_done
  return "$status"
}

#: sim [--seeds N] [--seed N] [...] | run the real code on virtual time, seed by seed (10,000); --seed replays one with its trace
cmd_sim() {
  need_cargo
  needs_groups build
  (cd "$STOKER_ROOT" && cargo build --locked --workspace --profile sim --bin stoker-sim --quiet)
  exec "$STOKER_ROOT/target/sim/stoker-sim" "$@"
}
