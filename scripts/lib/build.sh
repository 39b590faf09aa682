# shellcheck shell=bash
# Compiles. Every command names the whole workspace and then picks what it needs: for fewer packages
# cargo would choose other features of shared dependencies, and build them and Stoker again.

need_cargo() {
  have cargo || die "cargo is missing; install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$STOKER_ROOT/Cargo.toml") or newer with rustup"
}

# The dev profile is not optimised and shares its work with the tests; STOKER_PROFILE=release is for real hosts.
build_profile() { printf '%s\n' "${STOKER_PROFILE:-dev}"; }

binaries_dir() {
  local profile
  profile="$(build_profile)"
  printf '%s/%s\n' "$TARGET_DIR" "${profile/#dev/debug}"
}

cargo_build() {
  cd "$STOKER_ROOT" && CARGO_TARGET_DIR="$TARGET_DIR" \
    cargo build --locked --profile "$(build_profile)" --workspace "$@"
}

build_with_agent() { cargo_build "$@" && build_agent >/dev/null; }

# build_step WHAT BESIDE COMMAND...: one step. WHAT is built, and BESIDE is what goes on meanwhile.
build_step() {
  local what="$1" besides="${2:+; $2 beside it}"
  shift 2
  step_begin
  if [[ -t 2 ]]; then
    step_says "$what$besides"
    build_on_terminal "$@" || return 1
  else
    build_with_signs "$what" "$besides" "$@" || return 1
  fi
  if grep -q Compiling "$(log_of build)"; then step_done; else step_done "nothing to compile"; fi
}

# Cargo draws its own bar. The log holds what was on the terminal.
build_on_terminal() {
  ensure_dir "$LOGS_DIR" >/dev/null
  export CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH CARGO_TERM_COLOR=always
  CARGO_TERM_PROGRESS_WIDTH="$(terminal_width)"
  [[ -z ${NO_COLOR:-} ]] || CARGO_TERM_COLOR=never
  ("$@") 2>&1 | tee "$(log_of build)" >&2
}

terminal_width() {
  local size
  size="$(stty size <&2 2>/dev/null)" || size="24 80"
  # Some terminals do not know how wide they are, and call it 0.
  size="${size#* }"
  printf '%s\n' "$((size > 0 ? size : 80))"
}

# Cargo draws its bar into the log, where it is read.
build_with_signs() {
  local what="$1" besides="$2" total
  shift 2
  export CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 CARGO_TERM_COLOR=never
  beside build "$@"
  total="$(crates_to_build)"
  [[ -z $total ]] || step_says "$what, $total crates$besides"
  await build crates_built || {
    show_log build
    return 1
  }
}

build_failed() { die "the build failed; all that cargo said is in $(log_of build)"; }

# Its number is known when cargo draws its bar for the first time; a build that ends before had nothing to do.
crates_to_build() {
  local count
  while job_runs build; do
    count="$(bar_of_cargo)"
    if [[ -n $count ]]; then
      printf '%s\n' "${count#*/}"
      return 0
    fi
    sleep 0.1
  done
}

crates_built() {
  local count
  count="$(bar_of_cargo)"
  if [[ -n $count ]]; then printf '%s of %s crates\n' "${count%/*}" "${count#*/}"; else last_line build; fi
}

# Built/all, of cargo's last bar.
bar_of_cargo() {
  tail -c 4000 "$(log_of build)" | tr '\r' '\n' | sed -nE 's,^ *Building \[[^]]*\] ([0-9]+/[0-9]+).*,\1,p' | tail -n 1
}

# Prints the guest agent's path. It is linked statically, because as the guest's first process it finds no
# libraries; static-rustc adds that to its own compilation alone. A copy, because the next build of the
# workspace puts one that is not static in its place.
build_agent() {
  local built agent
  note "image: compiling the guest agent"
  (RUSTC_WORKSPACE_WRAPPER="$LIB/static-rustc" cargo_build --quiet --bin stoker-agent >&2) || return 1
  built="$(binaries_dir)/stoker-agent"
  agent="$(ensure_dir "$RUN_DIR")/stoker-agent"
  cp -- "$built" "$agent.$BASHPID" && mv -- "$agent.$BASHPID" "$agent" || return 1
  is_static "$agent" || {
    warn "image: the guest agent is not static; is another cargo at work in $TARGET_DIR?"
    return 1
  }
  printf '%s\n' "$agent"
}

# The path of the program that loads libraries stands at the start of what needs one.
is_static() { [[ $(head -c 4096 -- "$1" | grep -ac /ld-linux) == 0 ]]; }
