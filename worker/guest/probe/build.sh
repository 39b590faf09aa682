#!/bin/sh
# Builds the probe guest: build.sh OUT_ELF.  Needs gcc (or a cc like it) and ld.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: build.sh OUT_ELF" >&2
    exit 2
fi
CC=${CC:-cc}
LD=${LD:-ld}
for tool in "$CC" "$LD"; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "build.sh: '$tool' not found: install a C compiler (Debian: gcc and binutils)" >&2
        exit 3
    fi
done
case $("$CC" -dumpmachine) in
x86_64-*) ;;
*)
    echo "build.sh: the probe guest is x86_64 only, and '$CC' builds for $("$CC" -dumpmachine)" >&2
    exit 3
    ;;
esac

out=$1
src=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# Interrupts use the running stack, hence no red zone; no SSE state is set up,
# hence general registers only.
CFLAGS="-std=c11 -O2 -Wall -Wextra -Werror -Wshadow -Wconversion -Wno-sign-conversion \
 -ffreestanding -nostdlib -static -fno-pie -mno-red-zone -mgeneral-regs-only \
 -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
 -fno-builtin -fno-tree-loop-distribute-patterns -ffile-prefix-map=$src=."

objects=
for file in boot.S lib.c serial.c cmdline.c clock.c idle.c power.c virtio.c \
    net.c dhcp.c tcp.c reach.c http.c faults.c trial.c boot.c main.c; do
    # shellcheck disable=SC2086 # CFLAGS is a list
    "$CC" $CFLAGS -c "$src/$file" -o "$tmp/$file.o"
    objects="$objects $tmp/$file.o"
done
# shellcheck disable=SC2086 # so is objects
"$LD" -nostdlib -static --build-id=none -z noexecstack -z max-page-size=4096 \
    --fatal-warnings -s -T "$src/link.ld" -o "$tmp/probe.elf" $objects
mv "$tmp/probe.elf" "$out"
