# shellcheck shell=bash
# Says for each thing that Stoker can use whether it is there, and what to do if not.

#: doctor | what works on this host: hardware, rights, packages, versions, images
cmd_doctor() {
  DOCTOR_MISSING=0
  doctor_host
  doctor_rights
  doctor_tools
  doctor_images
  if ((DOCTOR_MISSING > 0)); then
    printf '\n%d missing. Nothing here is needed for: scripts/dev up --driver simulated\n' "$DOCTOR_MISSING"
    return 1
  fi
  printf '\nall there\n'
}

# report NAME STATE DETAIL: STATE is ok or missing; DETAIL is a version, or the remedy.
report() {
  printf '%-8s %-28s %s\n' "$2" "$1" "$3"
  [[ $2 == ok ]] || DOCTOR_MISSING=$((DOCTOR_MISSING + 1))
}

doctor_host() {
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64") report host ok "$(uname -sr), $(nproc) CPUs, $(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo) MiB available" ;;
    *) report host missing "guests are built for Linux on x86_64 only" ;;
  esac
  local free_mib
  free_mib="$(df -Pm "$STOKER_ROOT" | awk 'NR == 2 {print $4}')"
  if ((free_mib >= 4096)); then report disk ok "$free_mib MiB free"; else report disk missing "$free_mib MiB free, a build needs about 4096"; fi
}

# That /dev/kvm opens does not say that it runs a guest: nested or emulated ones may hang.
# The workers find that out by booting one; here only the rights are looked at.
doctor_rights() {
  if [[ ! -e /dev/kvm ]]; then
    report kvm missing "no /dev/kvm: QEMU emulates the CPU (slower); Firecracker cannot run. Enable virtualisation in the firmware, or modprobe kvm_intel / kvm_amd"
  elif [[ -r /dev/kvm && -w /dev/kvm ]]; then
    report kvm ok "/dev/kvm opens (whether it runs guests is found out at the first boot)"
  else
    report kvm missing "/dev/kvm is not accessible: sudo usermod -aG kvm $(id -un), then log in again"
  fi
  if [[ ! -c /dev/net/tun ]]; then
    report tun missing "no /dev/net/tun: modprobe tun"
  elif is_root || [[ -w /dev/net/tun ]]; then
    report tun ok /dev/net/tun
  else
    report tun missing "no access to /dev/net/tun: run as root, or use --unprivileged (user-mode network)"
  fi
  if ! is_root; then
    report "network namespaces" missing "need root; --unprivileged works without"
  elif unshare --net true 2>/dev/null; then
    report "network namespaces" ok "unshare --net works"
  else
    report "network namespaces" missing "this container forbids them (needs CAP_SYS_ADMIN)"
  fi
}

doctor_tools() {
  local group thing package
  while read -r group thing package; do
    [[ -n $group ]] || continue
    if [[ $group == browser ]] && ! thing_exists "$thing"; then
      printf '%-8s %-28s %s\n' optional "$(basename "$thing")" "$package, for the browser tests"
    elif thing_exists "$thing"; then
      report "$(basename "$thing")" ok "$(version_of "$thing")"
    else
      report "$(basename "$thing")" missing "sudo apt-get install --no-install-recommends $package  (for: $group)"
    fi
  done <<<"$DEPS_TABLE"
  if have cargo; then report cargo ok "$(cargo --version)"; else report cargo missing "install Rust with rustup"; fi
}

# Only for the tools whose version matters when a boot behaves differently elsewhere.
version_of() {
  case "$1" in
    qemu-system-x86_64 | qemu-img | dnsmasq | cc) "$(find_command "$1")" --version 2>/dev/null | head -n 1 ;;
    */rabbitmq-server) dpkg-query -W -f '${Version}\n' rabbitmq-server 2>/dev/null || true ;;
    *) find_command "$1" || printf '%s\n' "$1" ;;
  esac
}

doctor_images() {
  local name
  if [[ -x $CACHE_DIR/firecracker/$FC_VERSION/firecracker ]]; then
    report firecracker ok "$FC_VERSION"
  else
    report firecracker missing "scripts/dev firecracker"
  fi
  for name in linux-minimal probe; do
    if [[ -f $IMAGES_DIR/$name/image.json ]]; then
      report "image $name" ok "$(du -sh "$IMAGES_DIR/$name" | cut -f1)"
    else
      report "image $name" missing "scripts/dev image $name"
    fi
  done
}
