//! The kernel's random numbers: two copies of one guest's memory would draw the same ones.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::resume::SEED_BYTES;

const DEVICE: &str = "/dev/urandom";

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    seed: [u8; SEED_BYTES],
}

/// `RNDADDENTROPY`; its number is made of the size of the struct's two fixed fields.
const ADD: rustix::ioctl::Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `RNDRESEEDCRNG`
const RESEED: rustix::ioctl::Opcode = opcode::none(b'R', 0x07);

/// Mixes in the seed and makes everything that is drawn from now on depend on it. Both steps are
/// needed: a generator that is ready only looks at new entropy once a minute by itself.
pub fn reseed(seed: &[u8; SEED_BYTES]) -> io::Result<()> {
    let device = File::options().write(true).open(DEVICE)?;
    let length = SEED_BYTES as i32;
    let info = PoolInfo { entropy_bits: length * 8, bytes: length, seed: *seed };
    add(&device, info)?;
    now(&device)
}

#[expect(unsafe_code, reason = "an ioctl that neither the standard library nor rustix has a function for")]
fn add(device: impl AsFd, info: PoolInfo) -> io::Result<()> {
    // SAFETY: RNDADDENTROPY reads a rand_pool_info: two ints, then as many bytes as the second says,
    // which is the length of `seed`.
    unsafe { ioctl(device, Setter::<ADD, PoolInfo>::new(info)) }.map_err(Into::into)
}

#[expect(unsafe_code, reason = "an ioctl that neither the standard library nor rustix has a function for")]
fn now(device: impl AsFd) -> io::Result<()> {
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { ioctl(device, NoArg::<RESEED>::new()) }.map_err(Into::into)
}

/// Bytes of the kernel's random numbers; `None` while it has none, which must not stop a guest.
pub fn draw<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let drawn = getrandom(bytes.as_mut_slice(), GetRandomFlags::NONBLOCK).ok()?;
    (drawn == N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_linux() {
        assert_eq!((ADD, RESEED), (0x4008_5203, 0x5207));
        assert_eq!(size_of::<PoolInfo>(), 8 + SEED_BYTES);
    }

    #[test]
    fn two_draws_differ() {
        assert_ne!(draw::<16>().unwrap(), draw::<16>().unwrap());
    }
}
