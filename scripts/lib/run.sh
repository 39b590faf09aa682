# shellcheck shell=bash
# Starts Stoker from a fresh clone.

#: up [--driver D] [--broker amqp] [...] | install, build and run everything; other arguments go to `stoker up`
cmd_up() {
  need_cargo
  local args=("$@") groups=(run build image) profile_dir
  wants_private_broker "$@" && groups+=(broker)
  cmd_deps "${groups[@]}"
  if [[ " $* " != *simulated* ]]; then
    # Stoker says by itself which images it misses; the simulated driver needs none.
    (cmd_image) || warn "up: going on without all images"
    [[ " $* " != *" --image golden "* && " $* " != *" --image=golden "* ]] || cmd_image golden
  fi
  build_binaries
  if wants_private_broker "$@"; then
    local url
    url="$(cmd_broker start --name dev)"
    note "up: broker at $url, stop it with: scripts/dev broker stop"
    mapfile -t args < <(with_broker_url "$url" "$@")
  fi
  if wants_fetched_firecracker "$@"; then
    local firecracker
    firecracker="$(cmd_firecracker)"
    [[ -z $firecracker ]] || args+=(--firecracker "$firecracker")
  fi
  profile_dir="$(binaries_dir)"
  exec "$profile_dir/stoker" up --images "$IMAGES_DIR" --data "$STOKER_DIR/data" ${args[@]+"${args[@]}"}
}

need_cargo() {
  have cargo || die "cargo is missing; install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$STOKER_ROOT/Cargo.toml") or newer with rustup"
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

# The dev profile (dependencies optimised, own code lightly) builds in half the time of
# release and shares its work with the tests; STOKER_PROFILE=release is for real hosts.
build_binaries() {
  note "building stoker and stoker-worker (${STOKER_PROFILE:-dev})"
  (cd "$STOKER_ROOT" && cargo build --locked --profile "${STOKER_PROFILE:-dev}" \
    -p stoker-producer -p stoker-worker --bins >&2) || die "the build failed"
}

binaries_dir() {
  local profile="${STOKER_PROFILE:-dev}"
  printf '%s/%s\n' "$TARGET_DIR" "${profile/#dev/debug}"
}

#: bench [arguments] | build in release mode and run the benchmarks, with a private broker
cmd_bench() {
  need_cargo
  cmd_deps run build image broker
  (cmd_image) || warn "bench: going on without all images"
  export_test_environment bench
  STOKER_PROFILE=release build_binaries
  (cd "$STOKER_ROOT" && cargo run --locked --release -p stoker-tests --bin stoker-bench -- "$@")
}
