//! Tap devices, by the one ioctl that makes them; everything else about them is netlink.
//!
//! The only `unsafe` of Stoker: neither rustix nor nix wraps `TUNSETIFF`, and the crates that do
//! bring their own sockets and address handling for two system calls.

use std::{fs::File, io, os::fd::AsFd};

use rustix::ioctl::{self, IntegerSetter, Opcode, Updater, opcode};

/// Linux' limit for names of network devices, with the closing zero.
const NAME_BYTES: usize = 16;

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_TUN_EXCL: u16 = 0x8000;

/// Bytes before each frame on a tap's file (`struct virtio_net_hdr`); zeros mean a plain frame.
pub const VNET_HEADER_BYTES: usize = 10;

/// `struct ifreq` as TUNSETIFF reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    padding: [u8; 22],
}

/// Makes a tap that stays when its file is closed. Fails with `ResourceBusy` where the name is
/// taken: a tap with a past keeps the offload flags of its last user, which break checksums.
/// `owner` is the user a jailed VMM runs as.
pub fn create(name: &str, owner: Option<u32>) -> io::Result<()> {
    let file = set_interface(name, IFF_TUN_EXCL)?;
    if let Some(owner) = owner {
        set_number::<TUNSETOWNER>(&file, owner as usize)?;
    }
    set_number::<TUNSETPERSIST>(&file, 1)
}

/// The guest's end of a tap: what is written comes out of the device, and the other way round.
pub fn open(name: &str) -> io::Result<File> {
    set_interface(name, 0)
}

fn set_interface(name: &str, extra: u16) -> io::Result<File> {
    let mut request =
        InterfaceRequest { name: [0; NAME_BYTES], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | extra, padding: [0; 22] };
    // One byte stays zero: the name's end. An empty name would let the kernel choose one.
    let place = request.name.get_mut(..name.len()).filter(|p| !p.is_empty() && p.len() < NAME_BYTES);
    place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` (40 bytes) at the address given;
    // `InterfaceRequest` has its size and layout, and is borrowed mutably across the call.
    #[allow(unsafe_code)]
    unsafe {
        ioctl::ioctl(file.as_fd(), Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request))?;
    }
    Ok(file)
}

fn set_number<const OPCODE: Opcode>(file: &File, value: usize) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST and TUNSETOWNER, the only opcodes this is called with, take their
    // argument by value; no memory is touched.
    #[allow(unsafe_code)]
    unsafe {
        ioctl::ioctl(file.as_fd(), IntegerSetter::<OPCODE>::new_usize(value))?;
    }
    Ok(())
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40, "struct ifreq on 64-bit Linux");
