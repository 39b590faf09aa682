# shellcheck shell=bash
# Paths, messages and the few helpers that every command shares; the paths are used by the
# other files of this folder.
# shellcheck disable=SC2034

STOKER_DIR="$STOKER_ROOT/.stoker"
CACHE_DIR="${STOKER_CACHE:-$STOKER_DIR/cache}"
RUN_DIR="$STOKER_DIR/run"
LOGS_DIR="$STOKER_DIR/logs"
IMAGES_DIR="$STOKER_DIR/images"

# A cargo target folder that the caller chose is respected.
TARGET_DIR="${CARGO_TARGET_DIR:-$STOKER_ROOT/target}"

note() { printf '==> %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
# Exit code 2 is "wrong usage", as for the stoker binary.
die_usage() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The path of a command, also when it lives in a folder that a plain user's PATH leaves out.
find_command() {
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" 2>/dev/null
}

have() { find_command "$1" >/dev/null; }

is_root() { [[ $EUID -eq 0 ]]; }

sha256_of() { sha256sum -- "$1" | cut -d' ' -f1; }

# Makes a folder that its callers may rely on being absolute.
ensure_dir() {
  mkdir -p -- "$1"
  (cd -- "$1" && pwd)
}

# wait_until SECONDS COMMAND...: true as soon as the command succeeds, false at the deadline.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

# A zombie counts as gone: it holds nothing, and who reaps it is not ours to decide.
process_gone() {
  case "$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)" in
    '' | Z | X) return 0 ;;
    *) return 1 ;;
  esac
}

# A run as root leaves folders behind that a plain user cannot use: said at once, with the way out.
need_own_folders() {
  local folder
  for folder in "$STOKER_ROOT" "$STOKER_DIR" "$STOKER_DIR"/{cache,images,locks,logs,run,data} "$TARGET_DIR" "$TARGET_DIR"/*/; do
    [[ ! -e $folder || -w $folder ]] || die "$(id -un) may not write in $folder, it is $(stat -c %U "$folder")'s;" \
      "give the clone to one user: sudo chown -R $(id -un) $STOKER_ROOT"
  done
}

EXIT_FUNCTIONS=()

# at_exit FUNCTION: is called on every way out, also on Ctrl-C; the last one that was named comes first.
at_exit() {
  EXIT_FUNCTIONS=("$1" ${EXIT_FUNCTIONS[@]+"${EXIT_FUNCTIONS[@]}"})
  trap run_exit_functions EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

run_exit_functions() {
  local function
  # A second Ctrl-C does not cut the first one short.
  trap '' HUP INT TERM
  for function in "${EXIT_FUNCTIONS[@]}"; do "$function"; done
}

# with_lock NAME COMMAND...: one at a time, across processes; a second caller then finds the first one's work.
with_lock() {
  local file
  file="$(ensure_dir "$STOKER_DIR/locks")/$1"
  shift
  (
    exec 9>"$file"
    flock 9
    "$@"
  )
}
