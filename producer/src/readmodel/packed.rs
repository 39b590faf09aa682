//! Rows that are JSON, made small: LZ4 over a text that looks like them. What is written is what the
//! next start reads and what the disk holds, and most of a row is names of fields.

use super::ReadModelError;
use super::store::corrupt;

/// Looks like the rows. A change of it changes the form of the rows ([`super::store`]).
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");
/// A row is at most this large; an event is smaller by far.
const MAX_BYTES: usize = 8 << 20;

/// As kept.
pub fn pack(text: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress_prepend_size_with_dict(text, DICTIONARY)
}

/// As it was.
pub fn unpack(row: &[u8]) -> Result<Vec<u8>, ReadModelError> {
    let size = row.first_chunk::<4>().map(|size| u32::from_le_bytes(*size) as usize);
    if size.is_none_or(|size| size > MAX_BYTES) {
        return Err(corrupt("a row has no size that could be"));
    }
    lz4_flex::block::decompress_size_prepended_with_dict(row, DICTIONARY).map_err(corrupt)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_packed_comes_out_again(text in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            prop_assert_eq!(unpack(&pack(&text)).unwrap(), text);
        }

        #[test]
        fn damage_is_an_error_and_no_panic(row in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(&row);
        }
    }

    #[test]
    fn an_event_becomes_small() {
        let event = DICTIONARY.split(|byte| *byte == b'\n').next().unwrap();
        let other = String::from_utf8_lossy(event).replace("golden", "silver").replace("h-01", "h-77");
        assert!(pack(other.as_bytes()).len() * 3 < other.len(), "{} of {}", pack(other.as_bytes()).len(), other.len());
    }

    #[test]
    fn a_row_that_claims_to_be_huge_is_refused_unread() {
        assert!(unpack(&[0xff, 0xff, 0xff, 0xff, 0]).is_err());
        assert!(unpack(&[1, 0]).is_err());
    }
}
