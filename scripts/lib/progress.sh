# shellcheck shell=bash
# What people see of a command that takes long: its steps, how long each took, and a sign of life
# while one goes on; and jobs beside the step that is shown. All of it on stderr, each job's own
# output in .stoker/logs.

readonly SIGN_OF_LIFE_SECONDS="${STOKER_SIGN_OF_LIFE_S:-10}"
# A job that was asked to end is waited for: apt-get ends between two packages.
readonly JOB_END_SECONDS=60

declare -A JOBS=()
STEP_TIMES=()

# steps_start TITLE...: what will be done, in order.
steps_start() {
  STEPS=("$@")
  STEP=0
  STEPS_BEGUN="$(now)"
  at_exit end_jobs
}

# A step has a first line only when there is something to say before it is done: step_says TEXT.
step_begin() {
  STEP=$((STEP + 1))
  STEP_BEGUN="$(now)"
}

step_says() { printf '[%d/%d] %s: %s\n' "$STEP" "${#STEPS[@]}" "${STEPS[STEP - 1]}" "$1" >&2; }

# step_done [TEXT]: "done in TIME", or "TEXT (TIME)"; and what comes next.
step_done() {
  local took text next=""
  took="$(duration $(($(now) - STEP_BEGUN)))"
  text="done in $took"
  [[ -z ${1:-} ]] || text="$1 ($took)"
  ((STEP == ${#STEPS[@]})) || next=". Next: ${STEPS[STEP]}"
  STEP_TIMES+=("${STEPS[STEP - 1]} $took")
  step_says "$text$next"
}

since_start() { duration $(($(now) - STEPS_BEGUN)); }

# In microseconds. Some languages write EPOCHREALTIME with a comma.
now() { printf '%s\n' "${EPOCHREALTIME/[.,]/}"; }

# duration MICROSECONDS: 0.3 s, 20 s, 1 min 24 s, 1 h 2 min
duration() {
  local tenths=$((($1 + 50000) / 100000)) seconds=$((($1 + 500000) / 1000000))
  if ((tenths < 100)); then
    printf '%d.%d s' $((tenths / 10)) $((tenths % 10))
  elif ((seconds < 60)); then
    printf '%d s' "$seconds"
  elif ((seconds < 3600)); then
    printf '%d min %d s' $((seconds / 60)) $((seconds % 60))
  else
    printf '%d h %d min' $((seconds / 3600)) $((seconds % 3600 / 60))
  fi
}

log_of() { printf '%s/%s.log\n' "$LOGS_DIR" "$1"; }

# beside NAME COMMAND...: starts a job. It is a process group of its own, so that all of it can be ended.
# What it returns is in a file: the shell forgets it once another of its processes has been given the same pid,
# which on a busy machine takes minutes.
beside() {
  local name="$1" log result
  shift
  ensure_dir "$LOGS_DIR" >/dev/null
  log="$(log_of "$name")"
  result="$(result_of "$name")"
  rm -f -- "$result"
  set -m
  (
    JOB_RESULT="$result"
    trap 'printf "%s\n" "$?" >"$JOB_RESULT"' EXIT
    "$@"
  ) </dev/null >"$log" 2>&1 &
  JOBS[$name]=$!
  set +m
}

result_of() { printf '%s\n' "$LOGS_DIR/$1.result"; }

job_runs() { [[ ! -s $(result_of "$1") ]] && kill -0 "${JOBS[$1]}" 2>/dev/null; }

# await NAME [STATUS]: waits for a job and is what it returned. STATUS prints how far it is; without it,
# the job's last line is shown.
await() {
  local name="$1" status="${2:-last_line}" begun sign result=0
  begun="$(now)"
  sign=$((begun + SIGN_OF_LIFE_SECONDS * 1000000))
  while job_runs "$name"; do
    sleep 0.1
    if (($(now) >= sign)); then
      printf '      %s: %s, %s\n' "$name" "$("$status" "$name")" "$(duration $((sign - begun)))" >&2
      sign=$((sign + SIGN_OF_LIFE_SECONDS * 1000000))
    fi
  done
  wait "${JOBS[$name]}" 2>/dev/null || result=$?
  [[ ! -s $(result_of "$name") ]] || result="$(<"$(result_of "$name")")"
  unset "JOBS[$name]"
  return "$result"
}

last_line() {
  local line
  line="$(tail -c 2000 "$(log_of "$1")" | tr '\r' '\n' | sed -n 's/^==> //; /[^[:space:]]/p' | tail -n 1 | cut -c1-100)"
  printf '%s\n' "${line:-no output yet}"
}

# What a job said that people must know although it did not fail.
show_warnings() { grep -h '^warning: \|^SKIPPED ' "$(log_of "$1")" >&2 || true; }

# The end of what a job wrote, and where the whole of it is.
show_log() {
  local log
  log="$(log_of "$1")"
  printf -- '--- the end of %s:\n' "${log#"$STOKER_ROOT"/}" >&2
  tr '\r' '\n' <"$log" | grep -v '^ *Building \[\|^ *Compiling ' | tail -n 40 >&2 || true
  printf -- '---\n' >&2
}

# As Ctrl-C does on a terminal; jobs of their own group do not get that. Who does not heed it is killed.
end_jobs() {
  local name
  for name in "${!JOBS[@]}"; do kill -INT -- "-${JOBS[$name]}" 2>/dev/null || true; done
  for name in "${!JOBS[@]}"; do
    wait_until "$JOB_END_SECONDS" process_gone "${JOBS[$name]}" || kill -KILL -- "-${JOBS[$name]}" 2>/dev/null || true
  done
  JOBS=()
}
