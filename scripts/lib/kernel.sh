# shellcheck shell=bash
# An uncompressed kernel and its virtio modules, out of Debian's cloud kernel package. The
# package is only downloaded and unpacked, never installed.

# What a microVM with virtio-mmio network devices needs; a source of random numbers, without which a
# guest waits a minute and more for its first; and the power button, by which it is asked to end.
# Their dependencies are looked up.
readonly GUEST_MODULES=(virtio_mmio virtio_net virtio_rng button evdev)
# The golden image has a disk besides.
readonly GOLDEN_MODULES=("${GUEST_MODULES[@]}" virtio_blk ext4)

# Prints the folder: vmlinux, modules/NN-name.ko in load order, modules-golden/ with more of them.
guest_kernel() {
  local deb folder
  deb="$(kernel_deb)" || return 1
  # The number counts the forms that this folder has had: one of an older Stoker is not taken for it.
  folder="$CACHE_DIR/kernel/$(basename "$deb" .deb).4"
  if [[ ! -d $folder ]]; then
    unpack_kernel "$deb" "$folder" || return 1
  fi
  printf '%s\n' "$folder"
}

# The newest cached package; STOKER_KERNEL_DEB names one for a host without apt.
kernel_deb() {
  local folder deb
  if [[ -n ${STOKER_KERNEL_DEB:-} ]]; then
    printf '%s\n' "$STOKER_KERNEL_DEB"
    return 0
  fi
  folder="$(ensure_dir "$CACHE_DIR/deb")"
  deb="$(newest_deb "$folder")"
  if [[ -z $deb ]]; then
    download_kernel "$folder" || return 1
    deb="$(newest_deb "$folder")"
  fi
  printf '%s\n' "$deb"
}

newest_deb() {
  find "$1" -name 'linux-image-*-cloud-amd64_*.deb' | sort -V | tail -n 1
}

download_kernel() {
  local package work
  have apt-get || die "image: no apt-get; put a linux-image-*-cloud-amd64 .deb somewhere and set STOKER_KERNEL_DEB"
  package="$(concrete_kernel_package)"
  if [[ -z $package ]] && is_root; then
    apt-get -qq update >&2 || true
    package="$(concrete_kernel_package)"
  fi
  [[ -n $package ]] || die "image: apt knows no linux-image-cloud-amd64; run apt-get update as root"
  note "image: downloading $package"
  work="$(mktemp -d "$1/.new.XXXXXX")"
  # apt drops its privileges to download, so that user must reach the folder.
  chmod 0755 "$work"
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2) || {
    rm -rf -- "$work"
    die "image: apt-get could not download $package (an old package list? run apt-get update as root)"
  }
  mv "$work"/*.deb "$1/"
  rmdir "$work"
}

# linux-image-cloud-amd64 is an empty package that depends on the current kernel.
concrete_kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-.*-cloud-amd64$/ {print $2; exit}'
}

# A subshell, so that its trap sees its variables and ends with it.
unpack_kernel() (
  deb="$1" folder="$2"
  note "image: unpacking $(basename "$deb")"
  mkdir -p "$(dirname "$folder")"
  work="$(mktemp -d "$(dirname "$folder")/.new.XXXXXX")"
  trap 'rm -rf -- "$work"' EXIT
  dpkg-deb -x "$deb" "$work/root"
  mkdir "$work/out"
  extract_vmlinux "$(find "$work/root/boot" -name 'vmlinuz-*' | head -n 1)" "$work/out/vmlinux"
  collect_modules "$work/root" "$work/out/modules" "${GUEST_MODULES[@]}"
  collect_modules "$work/root" "$work/out/modules-golden" "${GOLDEN_MODULES[@]}"
  mv "$work/out" "$folder"
)

# A little-endian unsigned number: read_number FILE OFFSET BYTES
read_number() { od -An -v -t "u$3" -j "$2" -N "$3" -- "$1" | tr -d ' '; }

# The x86 boot protocol's header says where the compressed kernel lies in a bzImage, so no
# search for magic bytes is needed; the payload ends in 4 bytes that hold the unpacked size.
extract_vmlinux() {
  local bzimage="$1" out="$2" start length magic
  [[ $(read_number "$bzimage" $((0x202)) 2) -ge $((0x208)) ]] || die "image: $bzimage has too old a boot protocol"
  start=$((($(read_number "$bzimage" $((0x1f1)) 1) + 1) * 512 + $(read_number "$bzimage" $((0x248)) 4)))
  length=$(($(read_number "$bzimage" $((0x24c)) 4) - 4))
  magic="$(od -An -v -t x1 -j "$start" -N 4 -- "$bzimage" | tr -d ' ')"
  local unpack
  case "$magic" in
    02214c18) unpack=(lz4 -dc) ;;
    28b52ffd) unpack=(zstd -dc) ;;
    1f8b*) unpack=(gzip -dc) ;;
    fd377a58) unpack=(xz -dc) ;;
    *) die "image: unknown kernel compression $magic" ;;
  esac
  tail -c +$((start + 1)) -- "$bzimage" | head -c "$length" | "${unpack[@]}" >"$out" || true
  # head closes the pipe early, so the pipeline's own status says nothing: judge the result.
  [[ $(od -An -v -t x1 -N 4 -- "$out" | tr -d ' ') == 7f454c46 ]] || die "image: the kernel did not unpack to an ELF file"
  [[ $(stat -c %s "$out") -eq $(read_number "$bzimage" $((start + length)) 4) ]] || die "image: the kernel unpacked to the wrong size"
}

# Copies the modules, uncompressed, named so that their alphabetical order is the load order.
collect_modules() {
  local root="$1" out="$2" name file number=0
  mkdir "$out"
  for name in $(modules_in_order "$root" "${@:3}"); do
    file="$(module_file "$root" "$name")"
    number=$((number + 1))
    local target
    target="$out/$(printf '%02d' "$number")-$name.ko"
    case "$file" in
      *.ko) cp -- "$file" "$target" ;;
      *.ko.xz) xz -dc -- "$file" >"$target" ;;
      *.ko.zst) zstd -dcq -- "$file" >"$target" ;;
    esac
  done
}

# Dependencies first, each once.
modules_in_order() {
  local root="$1" name file
  shift
  local -A seen=()
  visit() {
    [[ -z ${seen[$1]:-} ]] || return 0
    seen[$1]=1
    file="$(module_file "$root" "$1")"
    # Built into this kernel: nothing to load.
    [[ -n $file ]] || return 0
    for name in $("$(find_command modinfo)" -F depends "$file" | tr ',-' ' _'); do visit "$name"; done
    printf '%s\n' "$1"
  }
  for name in "$@"; do visit "$name"; done
}

module_file() {
  find "$1" \( -name "${2}.ko*" -o -name "${2//_/-}.ko*" \) | head -n 1
}
