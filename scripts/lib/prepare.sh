# shellcheck shell=bash
# What long commands do before and beside the build: packages, crates, parts of the guest images,
# programs for tests. The command says first what it needs.
NEEDED_GROUPS=()
NEEDED_IMAGES=()
NEEDED_TOOLS=()
needs_groups() { NEEDED_GROUPS+=("$@"); }
needs_images() { NEEDED_IMAGES+=("$@"); }
needs_tools() { NEEDED_TOOLS+=("$@"); }

# Only what the build needs; all else is installed beside it.
packages_step() {
  local now=() later=() doing="" text=""
  step_begin
  mapfile -t now < <(missing_packages build)
  # Says what to install by hand.
  ((${#now[@]} == 0)) || can_install || {
    cmd_deps build
    need_compiler
  }
  crates_are_here || doing="fetching crates"
  ((${#now[@]} == 0)) || doing="installing $(listed "${now[@]}")${doing:+ and $doing}"
  if [[ -n $doing ]]; then
    step_says "$doing"
    beside packages get_for_build
    await packages || true
    show_warnings packages
    need_compiler
  fi
  mapfile -t later < <(missing_packages "${NEEDED_GROUPS[@]}")
  if ((${#later[@]} > 0)); then
    text="beside the build: $(listed "${later[@]}")"
    can_install || {
      cmd_deps "${NEEDED_GROUPS[@]}"
      text="without $(listed "${later[@]}")"
    }
  elif [[ -z $doing ]]; then
    text="nothing missing"
  fi
  step_done "$text"
}

can_install() { is_root && have apt-get; }

# a, b and c
listed() {
  local text="$1"
  while (($# > 2)); do
    text+=", $2"
    shift
  done
  [[ $# -lt 2 ]] || text+=" and $2"
  printf '%s\n' "$text"
}

crates_are_here() {
  (cd "$STOKER_ROOT" && cargo fetch --quiet --locked --offline --target x86_64-unknown-linux-gnu >/dev/null 2>&1)
}

# Cargo fetches by itself what is not here after this; it also says best what is wrong then.
get_for_build() {
  cmd_deps build
  note "fetching crates"
  (cd "$STOKER_ROOT" && cargo fetch --quiet --locked --target x86_64-unknown-linux-gnu) || true
}

need_compiler() {
  local missing=()
  mapfile -t missing < <(missing_packages build)
  ((${#missing[@]} == 0)) && return 0
  ! can_install || show_log packages
  die "the build needs what these Debian packages hold: ${missing[*]}"
}

# The job beside the build: nothing here needs a compiled program.
prepare() {
  local name status=0
  ! can_install || cmd_deps "${NEEDED_GROUPS[@]}"
  for name in ${NEEDED_IMAGES[@]+"${NEEDED_IMAGES[@]}"}; do (prepare_image "$name") || status=1; done
  for name in ${NEEDED_TOOLS[@]+"${NEEDED_TOOLS[@]}"}; do
    "cmd_$name" >"$(ensure_dir "$RUN_DIR/tools")/$name"
  done
  return "$status"
}

prepare_image() {
  case "$1" in
    linux-minimal) with_lock image guest_kernel >/dev/null ;;
    probe) with_lock image build_if_changed probe ;;
    golden) ! is_root || ! have mmdebstrap || with_lock image golden_packages >/dev/null ;;
  esac
}

finish_preparation() {
  PREPARED=yes
  await preparation || PREPARED=no
  show_warnings preparation
  [[ $PREPARED == yes ]] || show_log preparation
}

# Without root this is for people to decide: they have read what is missing.
need_to_run() {
  local missing=()
  [[ " ${NEEDED_GROUPS[*]} " == *" run "* ]] && can_install || return 0
  mapfile -t missing < <(missing_packages run)
  ((${#missing[@]} == 0)) ||
    die "packages: apt-get could not install ${missing[*]}; all that it said is in $(log_of preparation)"
}

# Empty when it was not asked for or could not be had.
tool_path() {
  [[ " ${NEEDED_TOOLS[*]} " == *" $1 "* ]] || return 0
  cat "$RUN_DIR/tools/$1"
}

# With what is left to prepare. Stoker says by itself which images it misses.
images_step() {
  step_begin
  finish_preparation
  if [[ $PREPARED == yes ]] && beside image cmd_image "${NEEDED_IMAGES[@]}" && await image; then
    show_warnings image
    step_done "$(listed "${NEEDED_IMAGES[@]}") are ready"
  else
    [[ $PREPARED == no ]] || show_log image
    step_done "going on without all images"
  fi
}
