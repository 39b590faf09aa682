# shellcheck shell=bash
# Fetches what the tests of the HTTP API and of the pages use, from Python packages: Schemathesis,
# which asks the API what its OpenAPI document promises, and axe, which looks for what keeps people
# out of a page.

readonly SCHEMATHESIS_REQUIREMENTS="$STOKER_ROOT/tests/schemathesis/requirements.txt"
readonly AXE_PACKAGE=axe-playwright-python
readonly AXE_PACKAGE_VERSION=0.1.8
readonly AXE_SHA256=84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc
readonly WEBTOOLS_DOWNLOAD_SECONDS=300

# tool NAME FUNCTION PATH: the path of a tool that the function fetches; or SKIPPED, and why.
tool() {
  local reason
  if reason="$(with_lock "$1" "$2" "$3" 2>&1)"; then
    printf '%s\n' "$3"
  else
    printf 'SKIPPED %s: %s\n' "$1" "${reason##*$'\n'}" >&2
  fi
}

#: schemathesis | fetch Schemathesis into an environment of its own; prints the path, or SKIPPED and why
cmd_schemathesis() {
  # Other versions, other folder.
  local version
  version="$(sha256_of "$SCHEMATHESIS_REQUIREMENTS" | cut -c1-12)"
  tool schemathesis fetch_schemathesis "$CACHE_DIR/schemathesis/$version/bin/schemathesis"
}

# Debian refuses pip outside such an environment. It knows its own path, so it is made in place;
# the program is its last file to come.
fetch_schemathesis() {
  local folder
  folder="$(dirname "$(dirname "$1")")"
  [[ -x $1 ]] && "$1" --version >/dev/null 2>&1 && return 0
  rm -rf -- "$folder"
  mkdir -p -- "$(dirname "$folder")"
  python3 -m venv "$folder" >/dev/null 2>&1 || {
    rm -rf -- "$folder"
    die "python3 -m venv does not work here (scripts/dev deps test installs python3-venv)"
  }
  timeout "$WEBTOOLS_DOWNLOAD_SECONDS" "$folder/bin/pip" install --quiet --disable-pip-version-check \
    --only-binary=:all: --require-hashes --requirement "$SCHEMATHESIS_REQUIREMENTS" >/dev/null 2>&1 || {
    rm -rf -- "$folder"
    die "pip could not install what tests/schemathesis/requirements.txt lists"
  }
}

#: axe | fetch and verify axe-core; prints the path, or SKIPPED and why
cmd_axe() {
  tool axe fetch_axe "$CACHE_DIR/axe/$AXE_PACKAGE_VERSION/axe.min.js"
}

# A subshell, so that its trap sees its variables and ends with it.
fetch_axe() (
  [[ -f $1 ]] && return 0
  python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is missing"
  work="$(mktemp -d "$(ensure_dir "$CACHE_DIR/axe")/.new.XXXXXX")"
  trap 'rm -rf -- "$work"' EXIT
  # The package is only unpacked, so this Python's version does not matter.
  timeout "$WEBTOOLS_DOWNLOAD_SECONDS" python3 -m pip download --quiet --no-deps --only-binary=:all: --ignore-requires-python \
    --dest "$work/wheel" "$AXE_PACKAGE==$AXE_PACKAGE_VERSION" >/dev/null 2>&1 ||
    die "pip could not download $AXE_PACKAGE==$AXE_PACKAGE_VERSION"
  python3 -m zipfile -e "$work"/wheel/*.whl "$work/unpacked"
  file="$(find "$work/unpacked" -name axe.min.js -print -quit)"
  [[ -n $file && $(sha256_of "$file") == "$AXE_SHA256" ]] || die "$AXE_PACKAGE holds another axe.min.js than expected"
  mkdir -p -- "$(dirname "$1")"
  # One rename, so that nobody ever sees half of it.
  mv -- "$file" "$1"
)
