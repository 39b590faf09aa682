# shellcheck shell=bash
# RabbitMQ of another Debian release, in a folder of its own: what a private node (broker.sh) is started from when
# STOKER_RABBITMQ_ROOT names that folder. Nothing of it is installed on the host.

# Its signatures are checked with the keys of the host's debian-archive-keyring, which knows the next release as well.
readonly RABBITMQ_UNPACK_SECONDS=600

#: rabbitmq RELEASE | unpack RabbitMQ of another Debian release (trixie has 4.0); prints its folder, for STOKER_RABBITMQ_ROOT
cmd_rabbitmq() {
  local release="${1:-}"
  [[ $release =~ ^[a-z]+$ ]] || die_usage "rabbitmq: which Debian release? for example: trixie"
  with_lock "rabbitmq-$release" unpack_rabbitmq "$release" "$CACHE_DIR/rabbitmq/$release" >&2
  printf '%s\n' "$CACHE_DIR/rabbitmq/$release"
}

unpack_rabbitmq() {
  local release="$1" root="$2"
  [[ ! -x $root$RABBITMQ_BIN ]] || return 0
  is_root || die "rabbitmq: unpacking another release needs root"
  have mmdebstrap || die "rabbitmq: mmdebstrap is missing (scripts/dev deps golden)"
  rm -rf -- "$root.new"
  mkdir -p -- "$(dirname "$root")"
  timeout "$RABBITMQ_UNPACK_SECONDS" mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --include=rabbitmq-server "$release" "$root.new" ||
    die "rabbitmq: mmdebstrap could not unpack $release"
  mv -- "$root.new" "$root"
}

# rabbitmq_release_prefix FOLDER: what stands before a program of RabbitMQ, one word a line; nothing for the host's own.
# A mount namespace of its own, so that no mount outlives the node; FOLDER is at the same path inside.
rabbitmq_release_prefix() {
  [[ -n ${STOKER_RABBITMQ_ROOT:-} ]] || return 0
  printf '%s\n' "$(find_command unshare)" --mount "$(command -v bash)" "$LIB/in-root" "$STOKER_RABBITMQ_ROOT" "$1"
}
