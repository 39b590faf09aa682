# shellcheck shell=bash
# The golden image: a root file system from Debian packages (worker/guest/golden), Debian's cloud
# kernel, and a RAM disk that loads its drivers. Only root can make it.

readonly GOLDEN_SOURCE="$STOKER_ROOT/worker/guest/golden"
# The network's interface is called eth0, as netplan in the image expects.
readonly GOLDEN_KERNEL_ARGS="console=ttyS0 root=/dev/vda net.ifnames=0 loglevel=4 systemd.log_color=0 panic=-1 reboot=t tsc=reliable no_timer_check mitigations=off nokaslr cryptomgr.notests"
# Holds 750 MB of packages; what a VM writes goes into its overlay, which may be larger.
readonly GOLDEN_DISK_MIB=1536
# Timers that would wake up in every VM, for nothing.
readonly GOLDEN_MASKED=(apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service)

inputs_of_golden() {
  local deb
  is_root || {
    warn "image: golden needs root, to unpack packages with their owners"
    return 1
  }
  have mmdebstrap || {
    warn "image: golden needs mmdebstrap (scripts/dev deps golden)"
    return 1
  }
  deb="$(kernel_deb)" || return 1
  digest_of "$GOLDEN_SOURCE" "$GUEST_AGENT" "$LIB/golden.sh" "$LIB/kernel.sh" "$deb"
}

build_golden() {
  local out="$1" kernel packages root="$1/.root"
  kernel="$(guest_kernel)" && packages="$(golden_packages)" || return 1
  cp -- "$kernel/vmlinux" "$out/vmlinux" || return 1
  golden_initramfs "$kernel/modules-golden" "$out/initrd.cpio" || return 1
  cp -a -- "$packages" "$root" || return 1
  lay_over_golden "$root" "$GUEST_AGENT" || return 1
  note "image: making golden's file system"
  mke2fs -q -t ext4 -m 0 -L golden -d "$root" "$out/rootfs.ext4" "${GOLDEN_DISK_MIB}M" || return 1
  rm -rf -- "$root"
  write_manifest "$out" <<JSON
{
  "schema": "dev.stoker.image.v1",
  "name": "golden",
  "kernel": "vmlinux",
  "initrd": "initrd.cpio",
  "rootfs": "rootfs.ext4",
  "kernel_args": "$GOLDEN_KERNEL_ARGS",
  "network": "dhcp",
  "allow_static": false,
  "agent_port": 8080,
  "shutdown": "/shutdown",
  "units": ["VM Browser OAuth Agent", "X Virtual Frame Buffer", "Openbox Window Manager", "Network Configuration", "Network Name Resolution"],
  "min_memory_mib": 448,
  "drivers": ["qemu"],
  "digests": {
    "vmlinux": "sha256:$(sha256_of "$out/vmlinux")",
    "initrd.cpio": "sha256:$(sha256_of "$out/initrd.cpio")",
    "rootfs.ext4": "sha256:$(sha256_of "$out/rootfs.ext4")"
  }
}
JSON
}

# The packages, unpacked and set up: a minute's work, and the same until their list changes.
golden_packages() {
  local folder digest
  digest="$(digest_of "$GOLDEN_SOURCE/packages" "$LIB/golden.sh")"
  folder="$CACHE_DIR/golden/$digest"
  if [[ ! -d $folder ]]; then
    note "image: unpacking golden's packages"
    local work
    work="$(mktemp -d "$(ensure_dir "$CACHE_DIR/golden")/.new.XXXXXX")"
    debootstrap_golden "$work/root" >&2 || {
      rm -rf -- "$work"
      return 1
    }
    mv "$work/root" "$folder"
    rmdir "$work"
  fi
  printf '%s\n' "$folder"
}

# From where this host gets its own packages.
debootstrap_golden() {
  local codename sources=()
  codename="$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)"
  mapfile -t sources < <(find /etc/apt/sources.list /etc/apt/sources.list.d -type f \( -name '*.list' -o -name '*.sources' \) -size +0 2>/dev/null)
  mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(paste -sd, "$GOLDEN_SOURCE/packages")" "$codename" "$1" "${sources[@]}"
}

lay_over_golden() {
  local root="$1" agent="$2" unit wants="$1/etc/systemd/system/multi-user.target.wants"
  cp -rT -- "$GOLDEN_SOURCE/rootfs" "$root" || return 1
  chmod 0600 "$root"/etc/netplan/*.yaml
  install -D -m 0755 "$agent" "$root/usr/local/bin/stoker-agent" || return 1
  for unit in "$GOLDEN_SOURCE"/rootfs/etc/systemd/system/*.service; do
    ln -sf "/etc/systemd/system/$(basename "$unit")" "$wants/"
  done
  for unit in "${GOLDEN_MASKED[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
  # Each boot gets an id of its own.
  : >"$root/etc/machine-id"
  printf 'golden\n' >"$root/etc/hostname"
  ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
}

# busybox and klibc's ipconfig, out of their packages; the packages are not installed.
golden_initramfs() {
  local modules="$1" out="$2" tools work name
  tools="$(golden_tools)" || return 1
  work="$(mktemp -d "$IMAGES_DIR/.initramfs.XXXXXX")"
  mkdir -m 0755 "$work"/{bin,dev,lib,modules,proc,root,sys}
  chmod 0755 "$work"
  install -m 0755 "$GOLDEN_SOURCE/init" "$work/init"
  install -m 0755 "$tools/bin/busybox" "$tools/usr/lib/klibc/bin/ipconfig" "$work/bin/"
  install -m 0755 "$tools"/lib/klibc-*.so "$work/lib/"
  for name in sh cat echo insmod mount umount usleep switch_root; do ln -s busybox "$work/bin/$name"; done
  install -m 0644 "$modules"/*.ko "$work/modules/"
  pack_cpio "$work" "$out"
}

golden_tools() {
  local folder="$CACHE_DIR/golden-tools" work
  if [[ ! -d $folder ]]; then
    work="$(mktemp -d "$(ensure_dir "$CACHE_DIR")/.tools.XXXXXX")"
    chmod 0755 "$work"
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download busybox-static klibc-utils libklibc >&2) || {
      rm -rf -- "$work"
      warn "image: busybox-static and klibc-utils cannot be downloaded"
      return 1
    }
    local deb
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/out" || return 1; done
    mv "$work/out" "$folder"
    rm -rf -- "$work"
  fi
  printf '%s\n' "$folder"
}
