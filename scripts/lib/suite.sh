# shellcheck shell=bash
# The test run and the static checks. What a test needs is told to it by environment
# variables; a missing one makes it report SKIPPED with the reason.

#: test [--kvm] [cargo test arguments] | run every test, then list what was skipped or left behind; with --kvm also what needs a KVM that runs Linux
cmd_test() {
  need_cargo
  local cargo_status=0 kvm=no
  if [[ ${1:-} == --kvm ]]; then
    kvm=yes
    shift
  fi
  needs_groups "${DEPS_DEFAULT_GROUPS[@]}" golden
  # A browser is a large install, so it is only made where the machine is thrown away.
  [[ -z ${CI:-} ]] || needs_groups browser
  needs_images linux-minimal probe golden
  needs_tools firecracker schemathesis axe
  steps_start packages build images broker tests
  packages_step
  beside preparation prepare
  build_for_tests "$@" || {
    printf 'the build failed; all that cargo said is in %s\n0 passed, 1 failed, 0 skipped\n' "$(log_of build)"
    return 1
  }
  images_step
  reap_dead_test_brokers
  export_test_environment test
  step_begin
  step_says "cargo test"
  run_cargo_test "$@" || cargo_status=$?
  [[ $kvm == no ]] || run_kvm_tests || cargo_status=$?
  find_leftovers
  step_done
  print_summary "$cargo_status"
}

# Without arguments all of it in one go. For some tests cargo builds what they need when it runs them.
build_for_tests() {
  local what="every program" parts=(--bins)
  if (($# == 0)); then
    what="every program and test"
    parts=(--bins --tests)
  fi
  build_step "$what" "what the guest images are made of" build_with_agent "${parts[@]}"
}

# export_test_environment KIND: one step. A folder, a broker and the variables of this run.
export_test_environment() {
  step_begin
  # Paths in it stay short, because unix sockets allow 107 bytes.
  TEST_DIR="$(mktemp -d "$(ensure_dir "$RUN_DIR")/$1-XXXXXX")"
  TEST_BROKER="$1-$$"
  at_exit end_test_environment
  # Inherited by everything that the tests start, so that survivors can be told apart.
  export STOKER_TEST_RUN="$TEST_DIR"
  export STOKER_TEST_SUMMARY="$TEST_DIR/summary"
  export STOKER_TEST_IMAGES="$IMAGES_DIR"
  STOKER_TEST_BIN_DIR="$(binaries_dir)"
  export STOKER_TEST_BIN_DIR
  : >"$STOKER_TEST_SUMMARY"
  namespaces >"$TEST_DIR/netns-before"
  export_tool STOKER_TEST_FIRECRACKER firecracker
  export_tool STOKER_TEST_SCHEMATHESIS schemathesis
  export_tool STOKER_TEST_AXE axe
  # `up` and `broker` are used from inside tests too; the broker must not carry the run's mark.
  if (unset STOKER_TEST_RUN && cmd_broker start --name "$TEST_BROKER" >/dev/null); then
    local lines
    lines="$(cmd_broker env --name "$TEST_BROKER")"
    eval "$lines"
    step_done "$TEST_BROKER is running"
  else
    printf 'SKIPPED broker: no private RabbitMQ node could be started\n' >&2
    step_done "none"
  fi
}

# export_tool VARIABLE TOOL
export_tool() {
  local path
  path="$(tool_path "$2")"
  [[ -z $path ]] || export "$1=$path"
}

# On every way out, also on Ctrl-C, once. The folder stays only when it holds evidence.
end_test_environment() {
  [[ -n ${TEST_DIR:-} ]] || return 0
  (unset STOKER_TEST_RUN && cmd_broker wipe --name "$TEST_BROKER") || true
  if [[ ${KEEP_TEST_DIR:-} == yes ]]; then
    note "kept for inspection: ${TEST_DIR#"$STOKER_ROOT"/}"
  else
    rm -rf -- "$TEST_DIR"
  fi
  TEST_DIR=""
}

# A run that was killed -9 could not stop its broker; its name holds the pid of that run.
reap_dead_test_brokers() {
  local folder name
  for folder in "$RUN_DIR"/broker/test-* "$RUN_DIR"/broker/bench-*; do
    [[ -d $folder ]] || continue
    name="$(basename "$folder")"
    if process_gone "${name##*-}"; then (cmd_broker wipe --name "$name") || true; fi
  done
}

run_cargo_test() {
  local scope=(--workspace)
  [[ " $* " == *" -p "* || " $* " == *" --package"* ]] && scope=()
  : >"$TEST_DIR/cargo.log"
  (cd "$STOKER_ROOT" && cargo test --locked --no-fail-fast ${scope[@]+"${scope[@]}"} "$@" 2>&1) |
    tee "$TEST_DIR/cargo.log"
}

# They are marked as ignored, so that a run that was not asked for them counts them as skipped.
run_kvm_tests() {
  note "what needs KVM"
  IGNORED_RAN=yes
  (cd "$STOKER_ROOT" && cargo test --locked --workspace --test e2e -- --ignored --nocapture kvm:: 2>&1) |
    tee -a "$TEST_DIR/cargo.log"
}

namespaces() {
  have ip || return 0
  "$(find_command ip)" netns list 2>/dev/null | awk '{print $1}' | grep '^st-' | LC_ALL=C sort || true
}

# What the tests started must be gone: processes by their inherited mark, network
# namespaces by name. Anything found is a failure of the run, and is removed.
find_leftovers() {
  local pid name
  : >"$TEST_DIR/leftovers"
  for pid in $(marked_processes); do
    printf 'LEFTOVER process %s: %s\n' "$pid" "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | cut -c1-160)" >>"$TEST_DIR/leftovers"
    kill -KILL "$pid" 2>/dev/null || true
  done
  while read -r name; do
    printf 'LEFTOVER network namespace %s\n' "$name" >>"$TEST_DIR/leftovers"
    "$(find_command ip)" netns delete "$name" || true
  done < <(LC_ALL=C comm -13 "$TEST_DIR/netns-before" <(namespaces))
}

# This shell exported the mark after it started, so its own environ file does not show it;
# its short-lived children do, and are gone before they can be reported.
marked_processes() {
  local file pid
  for file in /proc/[0-9]*/environ; do
    pid="${file#/proc/}"
    pid="${pid%/environ}"
    [[ $pid != "$$" && $pid != "$BASHPID" ]] || continue
    grep -qzxF "STOKER_TEST_RUN=$TEST_DIR" "$file" 2>/dev/null && printf '%s\n' "$pid"
  done
  return 0
}

# The very last line has the form "N passed, N failed, N skipped".
print_summary() {
  local cargo_status="$1" passed failed ignored skipped leftovers
  read -r passed failed ignored < <(awk '
    /^test result:/ { for (i = 2; i <= NF; i++) {
      if ($i ~ /^passed/) p += $(i - 1); if ($i ~ /^failed/) f += $(i - 1); if ($i ~ /^ignored/) n += $(i - 1) } }
    END { print p + 0, f + 0, n + 0 }' "$TEST_DIR/cargo.log")
  skipped="$(grep '^SKIPPED ' "$STOKER_TEST_SUMMARY" | cut -d: -f1 | sort -u | wc -l || true)"
  # All that is ignored otherwise ran, or said itself why not.
  [[ ${IGNORED_RAN:-} != yes ]] || ignored=0
  if ((ignored > 0)); then
    sed -nE 's/^test (.*) \.\.\. ignored, (.*)$/SKIPPED \1: \2/p' "$TEST_DIR/cargo.log" >>"$STOKER_TEST_SUMMARY"
  fi
  leftovers="$(wc -l <"$TEST_DIR/leftovers")"
  # cargo counts a test that returned early as passed.
  passed=$((passed > skipped ? passed - skipped : 0))
  if ((cargo_status != 0 && failed == 0)); then
    printf 'cargo test failed without a failed test: a build error, or a test binary that crashed\n'
    failed=1
  fi
  failed=$((failed + leftovers))
  ((failed == 0)) || KEEP_TEST_DIR=yes
  printf '\n'
  sort -u "$STOKER_TEST_SUMMARY"
  cat "$TEST_DIR/leftovers"
  end_test_environment
  printf 'took %s: %s\n' "$(since_start)" "$(listed "${STEP_TIMES[@]}")"
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" $((skipped + ignored))
  ((failed == 0))
}

#: check | formatting, lints, documentation, licences, shell scripts
cmd_check() {
  need_cargo
  cd "$STOKER_ROOT" || exit
  local failed=0
  step cargo fmt --all --check
  step one_choice_of_features
  step cargo clippy --locked --workspace --all-targets -- -D warnings
  RUSTDOCFLAGS="-D warnings" step cargo doc --locked --workspace --no-deps --document-private-items
  if have cargo-deny; then
    step cargo deny check bans licenses sources
    cargo deny check advisories || printf 'SKIPPED advisories: see above (the database may be out of reach)\n'
  else
    printf 'SKIPPED cargo deny: not installed (cargo install --locked cargo-deny)\n'
  fi
  if have shellcheck; then
    step shellcheck -x scripts/dev scripts/lib/*.sh .ci/run
  else
    printf 'SKIPPED shellcheck: not installed (scripts/dev deps test)\n'
  fi
  ((failed == 0)) || die "check: $failed step(s) failed"
  note "check: all fine"
}

# What tests ask of shared crates must be asked for without tests as well, see tests/Cargo.toml: else a build of
# the programs and one of the tests compile those crates, and all that uses them, twice.
one_choice_of_features() {
  local differ
  differ="$(LC_ALL=C comm -23 <(features_of normal,build) <(features_of normal,build,dev))"
  [[ -z $differ ]] || {
    printf 'with other features when tests are built (cargo tree -e features -i CRATE shows why):\n%s\n' "$differ"
    return 1
  }
}

features_of() {
  cargo tree --quiet --locked --workspace --target x86_64-unknown-linux-gnu --prefix none --no-dedupe \
    --edges "$1" --format '{p} {f}' | sed 's/ (\*)$//' | LC_ALL=C sort -u
}

step() {
  note "$*"
  "$@" || failed=$((failed + 1))
}
