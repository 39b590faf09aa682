#!/bin/sh
# Boots the probe guest for real and asks it for /health: in QEMU (any machine)
# and in Firecracker (needs /dev/kvm, and FIRECRACKER=path or one on the PATH).
# Works in a network namespace of its own.  A part whose tools are missing
# prints SKIPPED; ends with 'N passed, N failed, N skipped'.
set -eu

if [ "${PROBE_SELFTEST_INSIDE:-}" != yes ]; then
    export PROBE_SELFTEST_INSIDE=yes
    exec unshare --user --map-root-user --net sh "$0" "$@"
fi

src=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
dir=$(mktemp -d)
vmm=
trap 'stop; rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
id=3f0c9a52-7d51-4c8e-9b64-5f1c5f0a7e11

stop() {
    [ -z "$vmm" ] || kill -9 "$vmm" 2>/dev/null || true
    [ -z "$vmm" ] || wait "$vmm" 2>/dev/null || true
    vmm=
}

# health URL: the answer, asked for until it comes or about 10 s are over
health() {
    tries=0
    until curl --silent --fail --max-time 1 "$1/health"; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || return 0
        sleep 0.1
    done
}

# judge NAME ANSWER
judge() {
    stop
    case $2 in
    *'"status":"ok"'*"\"vmId\":\"$id\""*)
        echo "ok: $1"
        passed=$((passed + 1))
        ;;
    *)
        echo "FAILED: $1: answer '$2', console:"
        cat "$dir/console"
        failed=$((failed + 1))
        ;;
    esac
}

skip() {
    echo "SKIPPED $1: $2"
    skipped=$((skipped + 1))
}

boot_in_qemu() {
    qemu-system-x86_64 -M microvm -accel tcg,tb-size=32 -m 64 -nodefaults -no-user-config \
        -display none -no-reboot -serial stdio -kernel "$dir/probe.elf" \
        -append "console=ttyS0 stoker.vm_id=$id" -device virtio-net-device,netdev=n \
        -netdev user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:8081-:8080 \
        >"$dir/console" 2>&1 </dev/null &
    vmm=$!
    judge "QEMU microvm, DHCP" "$(health http://127.0.0.1:8081)"
}

boot_in_firecracker() {
    ip tuntap add tap0 mode tap
    ip addr add 192.168.100.1/24 dev tap0
    ip link set tap0 up
    cat >"$dir/vm.json" <<JSON
{ "boot-source": { "kernel_image_path": "$dir/probe.elf",
    "boot_args": "console=ttyS0 stoker.vm_id=$id ip=192.168.100.2::192.168.100.1:255.255.255.0::eth0:off" },
  "drives": [],
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 32 },
  "network-interfaces": [ { "iface_id": "eth0", "host_dev_name": "tap0",
    "guest_mac": "06:00:c0:a8:64:02" } ] }
JSON
    "$FIRECRACKER" --no-api --config-file "$dir/vm.json" >"$dir/console" 2>&1 </dev/null &
    vmm=$!
    judge "Firecracker, static address" "$(health http://192.168.100.2:8080)"
}

"$src/build.sh" "$dir/probe.elf"
ip link set lo up
if command -v qemu-system-x86_64 >/dev/null; then
    boot_in_qemu
else
    skip "QEMU" "qemu-system-x86_64 is not installed"
fi
FIRECRACKER=${FIRECRACKER:-$(command -v firecracker || true)}
if [ -z "$FIRECRACKER" ]; then
    skip "Firecracker" "no firecracker on the PATH and FIRECRACKER is not set"
elif [ ! -w /dev/kvm ] || [ ! -w /dev/net/tun ]; then
    skip "Firecracker" "no access to /dev/kvm or /dev/net/tun"
else
    boot_in_firecracker
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
