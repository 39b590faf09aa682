# shellcheck shell=bash
# Tests of the tests, and inputs that nobody thought of. Both take long, so that neither is part of `test`.

readonly MUTANTS_VERSION=27.1.0
readonly MUTANTS_PACKAGE=stoker-schemas
readonly MUTANT_TIMEOUT_SECONDS=120
# Slow properties, which few mutants need: they are asked about what survives everything else.
readonly SLOW_TESTS=(simulation guesses clocks)

#: mutants [FILES...] | change the pure core in small ways and see that a test fails each time (30 minutes; or only these files)
cmd_mutants() {
  need_cargo
  local program out files=() skipped=() name
  program="$(with_lock mutants mutants_program)" || die "cargo-mutants could not be installed"
  out="$(ensure_dir "$RUN_DIR/mutants")"
  for name in "$@"; do files+=(--file "$name"); done
  for name in "${SLOW_TESTS[@]}"; do skipped+=(--skip "$name"); done
  cd "$STOKER_ROOT" || exit
  rm -rf -- "$out/mutants.out" "$out/mutants.out.old"
  note "mutants: with all but the slowest tests"
  PROPTEST_CASES=32 run_mutants "$program" "$out" ${files[@]+"${files[@]}"} -- --lib -- "${skipped[@]}"
  cp -- "$out/mutants.out/caught.txt" "$out/caught-at-once.txt"
  cp -- "$out/mutants.out/unviable.txt" "$out/unviable.txt"
  if [[ -s $out/mutants.out/missed.txt ]]; then
    note "mutants: the survivors with every test"
    run_mutants "$program" "$out" --iterate ${files[@]+"${files[@]}"} -- --lib
  fi
  print_mutants "$out"
}

# cargo-mutants fails when a mutant survives; what that means is said at the end. Its copies of the tree hold
# no second target folder of ours.
run_mutants() {
  local program="$1" out="$2" status=0
  shift 2
  env -u CARGO_TARGET_DIR "$program" mutants --package "$MUTANTS_PACKAGE" --test-package "$MUTANTS_PACKAGE" \
    --no-shuffle --gitignore true --jobs 2 --timeout "$MUTANT_TIMEOUT_SECONDS" --cargo-arg=--locked \
    --output "$out" "$@" || status=$?
  ((status == 0 || status == 2 || status == 3)) || die "cargo-mutants failed; see $out/mutants.out/log"
}

# In the cache, never among the user's own programs.
mutants_program() {
  local folder="$CACHE_DIR/mutants/$MUTANTS_VERSION"
  [[ -x $folder/bin/cargo-mutants ]] ||
    cargo install --locked --quiet --root "$folder" --version "$MUTANTS_VERSION" cargo-mutants >&2 || return 1
  printf '%s\n' "$folder/bin/cargo-mutants"
}

print_mutants() {
  local out="$1" caught missed unviable
  caught="$(cat "$out/caught-at-once.txt" "$out/mutants.out/caught.txt" | sort -u | wc -l)"
  missed="$(wc -l <"$out/mutants.out/missed.txt")"
  unviable="$(cat "$out/unviable.txt" "$out/mutants.out/unviable.txt" | sort -u | wc -l)"
  # One that runs for ever is noticed as well.
  caught=$((caught + $(sort -u "$out/mutants.out/timeout.txt" | wc -l)))
  sort "$out/mutants.out/missed.txt"
  ((caught + missed > 0)) || die "no mutant was made"
  printf '%d caught, %d missed, %d do not compile: %s %% of those that do\n' \
    "$caught" "$missed" "$unviable" "$(awk -v c="$caught" -v m="$missed" 'BEGIN { printf "%.1f", 100 * c / (c + m) }')"
  ((missed == 0)) || {
    printf 'write a test for each, or give the reason in .cargo/mutants.toml\n'
    return 1
  }
}

#: fuzz [SECONDS] [PARSER] | feed every parser of outside bytes changed valid inputs, a minute each; random, on stable Rust, blind to what code an input reaches
cmd_fuzz() {
  need_cargo
  [[ ${1:-60} =~ ^[0-9]+$ ]] || die_usage "fuzz: SECONDS is a number, not $1"
  export STOKER_FUZZ_SECONDS="${1:-60}" STOKER_FUZZ_TARGET="${2:-}" STOKER_FUZZ_DIR
  STOKER_FUZZ_DIR="$(ensure_dir "$STOKER_DIR/fuzz")"
  cd "$STOKER_ROOT" && CARGO_TARGET_DIR="$TARGET_DIR" RUST_BACKTRACE=0 \
    cargo test --locked --workspace --test fuzz -- --nocapture no_parser
}
