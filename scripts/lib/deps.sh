# shellcheck shell=bash
# Installs Debian packages, and only those whose command is missing: a package that is
# already there in another version must not be touched, nor block the rest.

# group  what must exist (command, or absolute path; a pattern where it holds a version)  package
DEPS_TABLE='
run    ip                                     iproute2
run    ps                                     procps
run    nft                                    nftables
run    dnsmasq                                dnsmasq-base
run    qemu-system-x86_64                     qemu-system-x86
run    qemu-img                               qemu-utils
run    curl                                   curl
build  cc                                     gcc
build  /usr/include/stdlib.h                  libc6-dev
image  dpkg-deb                               dpkg
image  cpio                                   cpio
image  lz4                                    lz4
image  zstd                                   zstd
image  xz                                     xz-utils
image  modinfo                                kmod
golden mmdebstrap                             mmdebstrap
golden mke2fs                                 e2fsprogs
broker /usr/lib/rabbitmq/bin/rabbitmq-server  rabbitmq-server
test   python3                                python3
test   /usr/lib/python3/dist-packages/pip     python3-pip
test   /usr/lib/python3.*/ensurepip           python3-venv
test   /usr/lib/python3/dist-packages/pika    python3-pika
test   openssl                                openssl
test   tcpdump                                tcpdump
test   promtool                               prometheus
test   shellcheck                             shellcheck
browser chromium                              chromium
browser chromedriver                          chromium-driver
'
DEPS_DEFAULT_GROUPS=(run build image broker test)

# A slow apt elsewhere on the host is waited for, but not for ever.
readonly APT_LOCK_SECONDS=300
readonly POLICY_FILE=/usr/sbin/policy-rc.d

#: deps [run|build|image|golden|broker|test|browser]... | install what is missing (Debian packages); starts no service
cmd_deps() {
  local groups=("$@") missing=()
  (($# > 0)) || groups=("${DEPS_DEFAULT_GROUPS[@]}")
  mapfile -t missing < <(missing_packages "${groups[@]}")
  if ((${#missing[@]} == 0)); then
    note "deps: nothing missing (${groups[*]})"
    return 0
  fi
  if ! is_root; then
    warn "deps: not root, so these stay missing: ${missing[*]}"
    warn "deps: install them with: sudo apt-get install --no-install-recommends ${missing[*]}"
    return 0
  fi
  if ! have apt-get; then
    warn "deps: no apt-get here; install what these Debian packages hold: ${missing[*]}"
    return 0
  fi
  with_lock deps install_packages "${missing[@]}"
  mapfile -t missing < <(missing_packages "${groups[@]}")
  # Debian removes what does not go with a new package: qemu-utils of the backports goes when
  # qemu-system-x86 of the release comes. What was there before is missing now.
  if ((${#missing[@]} > 0)); then
    note "deps: still missing: ${missing[*]}"
    with_lock deps install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages "${groups[@]}")
  fi
  ((${#missing[@]} == 0)) || warn "deps: could not be installed: ${missing[*]}"
}

missing_packages() {
  local group thing package
  while read -r group thing package; do
    [[ -n "$group" && " $* " == *" $group "* ]] || continue
    thing_exists "$thing" || printf '%s\n' "$package"
  done <<<"$DEPS_TABLE"
}

thing_exists() {
  case "$1" in
    /*) compgen -G "$1" >/dev/null ;;
    *) have "$1" ;;
  esac
}

# Runs in a subshell, so the trap ends with it.
install_packages() (
  note "deps: installing $*"
  export DEBIAN_FRONTEND=noninteractive
  local services_before
  services_before="$(enabled_services)"
  forbid_service_starts
  apt_install "$@" || {
    apt-get -qq update || warn "deps: apt-get update failed"
    # One package that cannot be had must not keep the others away.
    apt_install "$@" || for package in "$@"; do apt_install "$package" || true; done
  }
  disable_new_services "$services_before"
)

apt_install() {
  apt-get -qq -o "DPkg::Lock::Timeout=$APT_LOCK_SECONDS" -o Dpkg::Use-Pty=0 \
    install -y --no-install-recommends "$@" >&2
}

# Packages such as rabbitmq-server start their service when installed. Debian asks
# policy-rc.d first; an administrator's own policy is left as it is.
forbid_service_starts() {
  [[ ! -e $POLICY_FILE ]] || return 0
  printf '#!/bin/sh\nexit 101\n' >"$POLICY_FILE"
  chmod 0755 "$POLICY_FILE"
  trap 'rm -f -- "$POLICY_FILE"' EXIT INT TERM
}

enabled_services() {
  have systemctl || return 0
  systemctl list-unit-files --no-legend --state=enabled 2>/dev/null | awk '{print $1}' | sort || true
}

# policy-rc.d stops the start now, not the one at the next boot.
disable_new_services() {
  local unit
  have systemctl || return 0
  comm -13 <(printf '%s\n' "$1") <(enabled_services) | while read -r unit; do
    [[ -n $unit ]] || continue
    systemctl disable --quiet "$unit" >/dev/null 2>&1 || warn "deps: could not disable $unit"
  done
}
