# shellcheck shell=bash
# Guest images: one folder each under .stoker/images, described by image.json. An image is
# rebuilt when the digest of its inputs changed.

# Second half: measured with QEMU's TCG. Without no_timer_check 1-2 of 50 guests die in the
# timer check, without tsc=reliable the watchdog distrusts an emulated clock; the mitigations
# protect nothing inside a guest of one program, and cost a third of its boot.
readonly LINUX_KERNEL_ARGS="console=ttyS0 panic=-1 reboot=t tsc=reliable no_timer_check mitigations=off nokaslr cryptomgr.notests"
readonly PROBE_KERNEL_ARGS="console=ttyS0"

#: image [linux-minimal|probe|golden]... | build the guest images (nothing is done when nothing changed); golden only when named
cmd_image() {
  local name names=("$@")
  (($# > 0)) || names=(linux-minimal probe)
  [[ $(uname -m) == x86_64 ]] || die "image: guests are built for x86_64 only, this is $(uname -m)"
  # Before its images: it is one of what they are made of.
  if [[ " ${names[*]} " =~ \ (linux-minimal|golden)\  ]]; then
    GUEST_AGENT="$(build_agent)" || die "image: the guest agent could not be built"
  fi
  for name in "${names[@]}"; do
    case "$name" in
      linux-minimal) with_lock image build_if_changed linux-minimal ;;
      probe) with_lock image build_if_changed probe ;;
      golden)
        cmd_deps golden
        with_lock image build_if_changed golden
        ;;
      *) die_usage "image: linux-minimal, probe or golden, not $name" ;;
    esac
  done
}

build_if_changed() {
  local name="$1" digest folder
  folder="$IMAGES_DIR/$name"
  if ! digest="$("inputs_of_${name//-/_}")"; then
    warn "image: $name skipped"
    return 0
  fi
  if [[ -f $folder/image.json && $(cat "$folder/.inputs" 2>/dev/null) == "$digest" ]]; then
    note "image: $name is current"
    return 0
  fi
  note "image: building $name"
  # Not local: the trap of with_lock's subshell sees it.
  NEW_IMAGE="$(mktemp -d "$(ensure_dir "$IMAGES_DIR")/.new.XXXXXX")"
  trap 'rm -rf -- "$NEW_IMAGE"' EXIT
  local work="$NEW_IMAGE"
  "build_${name//-/_}" "$work" || die "image: $name could not be built"
  printf '%s\n' "$digest" >"$work/.inputs"
  chmod 0755 "$work"
  rm -rf -- "$folder"
  mv "$work" "$folder"
  note "image: $name is ready"
}

# One digest over names and contents of all files below the given paths.
digest_of() {
  find "$@" -type f -not -path '*/target/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

inputs_of_linux_minimal() {
  local deb
  deb="$(kernel_deb)" || return 1
  digest_of "$GUEST_AGENT" "$LIB/image.sh" "$LIB/kernel.sh" "$deb"
}

build_linux_minimal() {
  local out="$1" kernel
  kernel="$(guest_kernel)" || return 1
  cp -- "$kernel/vmlinux" "$out/vmlinux" || return 1
  pack_initramfs "$GUEST_AGENT" "$kernel/modules" "$out/initrd.cpio" || return 1
  write_manifest "$out" <<JSON
{
  "schema": "dev.stoker.image.v1",
  "name": "linux-minimal",
  "kernel": "vmlinux",
  "initrd": "initrd.cpio",
  "rootfs": null,
  "kernel_args": "$LINUX_KERNEL_ARGS",
  "network": "dhcp",
  "allow_static": false,
  "agent_port": 8080,
  "shutdown": "/shutdown",
  "units": ["Network Configuration", "VM Browser OAuth Agent"],
  "min_memory_mib": 128,
  "drivers": ["qemu"],
  "prewarmed": true,
  "digests": {
    "vmlinux": "sha256:$(sha256_of "$out/vmlinux")",
    "initrd.cpio": "sha256:$(sha256_of "$out/initrd.cpio")"
  }
}
JSON
}

# The same inputs give the same bytes: sorted, no times, no owners.
pack_initramfs() {
  local agent="$1" modules="$2" out="$3" work
  work="$(mktemp -d "$IMAGES_DIR/.initramfs.XXXXXX")"
  mkdir -m 0755 "$work/dev" "$work/proc" "$work/sys" "$work/modules"
  chmod 0755 "$work"
  install -m 0755 "$agent" "$work/init"
  install -m 0644 "$modules"/*.ko "$work/modules/"
  pack_cpio "$work" "$out"
}

# pack_cpio FOLDER OUT; the folder is gone afterwards.
pack_cpio() {
  find "$1" -exec touch -h -d @0 {} +
  (cd "$1" && find . -print0 | LC_ALL=C sort -z |
    cpio --quiet --null --create --format=newc --reproducible --owner=0:0) >"$2" || return 1
  rm -rf -- "$1"
}

inputs_of_probe() {
  local source="$STOKER_ROOT/worker/guest/probe"
  if [[ ! -x $source/build.sh ]]; then
    warn "image: worker/guest/probe/build.sh is missing"
    return 1
  fi
  digest_of "$source" "$LIB/image.sh"
}

# build.sh OUT writes a freestanding ELF, which both VMMs start directly.
build_probe() {
  local out="$1"
  bash "$STOKER_ROOT/worker/guest/probe/build.sh" "$out/probe.elf" >&2 || return 1
  write_manifest "$out" <<JSON
{
  "schema": "dev.stoker.image.v1",
  "name": "probe",
  "kernel": "probe.elf",
  "initrd": null,
  "rootfs": null,
  "kernel_args": "$PROBE_KERNEL_ARGS",
  "network": "dhcp",
  "allow_static": false,
  "agent_port": 8080,
  "units": ["Network Configuration", "VM Browser OAuth Agent"],
  "min_memory_mib": 32,
  "drivers": ["firecracker", "qemu"],
  "digests": {
    "probe.elf": "sha256:$(sha256_of "$out/probe.elf")"
  }
}
JSON
}

write_manifest() { cat >"$1/image.json"; }
