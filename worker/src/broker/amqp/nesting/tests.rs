//! What comes through the bound on nesting, for frames of every shape and reads of every size.

use lapin::{protocol::constants::FRAME_END, types::parsing::parse_field_table};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::fuzz::broker::{HEADERS_AT, deep_headers, depth, header_frame};

/// Each type of a value that holds no others, with the number of bytes after it.
const FIXED: [(u8, usize); 17] = [
    (b't', 1),
    (b'b', 1),
    (b'B', 1),
    (b's', 2),
    (b'U', 2),
    (b'u', 2),
    (b'I', 4),
    (b'i', 4),
    (b'L', 8),
    (b'l', 8),
    (b'f', 4),
    (b'd', 8),
    (b'D', 5),
    (b'T', 8),
    (b'V', 0),
    (b'S', 0),
    (b'x', 0),
];

#[derive(Debug, Clone)]
enum Tree {
    Leaf(u8, Vec<u8>),
    Inner(Kind, Vec<Tree>),
}

impl Tree {
    /// As it is sent, or as it has to arrive.
    fn write(&self, level: usize, limit: usize, out: &mut Vec<u8>) {
        let Self::Inner(kind, items) = self else { return self.write_leaf(out) };
        let id = if *kind == Kind::Table { b'F' } else { b'A' };
        out.push(if level > limit { b'x' } else { id });
        // What is inside of bytes stays as it is.
        let limit = if level > limit { usize::MAX } else { limit };
        out.extend(length_and(|out| {
            for (n, item) in items.iter().enumerate() {
                if *kind == Kind::Table {
                    out.extend([2, b'k', n as u8 + b'0']);
                }
                item.write(level + 1, limit, out);
            }
        }));
    }

    fn write_leaf(&self, out: &mut Vec<u8>) {
        let Self::Leaf(id, bytes) = self else { return };
        out.push(*id);
        match FIXED.iter().find(|(fixed, _)| fixed == id) {
            Some((b'S' | b'x', _)) | None => out.extend(length_and(|out| out.extend(bytes))),
            Some((_, size)) => out.extend((0..*size).map(|n| bytes.get(n).copied().unwrap_or(b'F'))),
        }
    }
}

fn length_and(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut inside = Vec::new();
    write(&mut inside);
    [&u32::try_from(inside.len()).unwrap().to_be_bytes()[..], &inside].concat()
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, 1][..], &length_and(|out| out.extend(payload)), &[FRAME_END]].concat()
}

/// The frame of a content header: properties before the headers, the headers, and one after them.
fn header(texts: &[Vec<u8>], headers: &[Tree], limit: usize) -> Vec<u8> {
    let flags: u16 = [0x2001, 0xA001, 0xE001][texts.len()];
    let mut payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &flags.to_be_bytes()].concat();
    for text in texts {
        payload.push(text.len() as u8);
        payload.extend(text);
    }
    let mut table = Vec::new();
    Tree::Inner(Kind::Table, headers.to_vec()).write(1, limit, &mut table);
    payload.extend(&table[1..]);
    payload.extend(b"\x04FAFA");
    frame(FRAME_HEADER, &payload)
}

fn kind() -> impl Strategy<Value = Kind> + Clone {
    select(vec![Kind::Table, Kind::Array])
}

fn tree() -> impl Strategy<Value = Tree> {
    let ids = FIXED.map(|(id, _)| id).to_vec();
    let leaf = (select(ids), vec(any::<u8>(), 0..9)).prop_map(|(id, bytes)| Tree::Leaf(id, bytes));
    let wide = leaf.prop_recursive(3, 12, 4, |inner| {
        (kind(), vec(inner, 0..4)).prop_map(|(kind, items)| Tree::Inner(kind, items))
    });
    // Down to about the limit and beyond, with something beside each step.
    let steps = vec((kind(), 0..3_u8), 0..2 * MAX_DEPTH);
    (wide.clone(), wide, steps).prop_map(|(bottom, beside, steps)| {
        steps.into_iter().fold(bottom, |below, (kind, place)| {
            let beside = if let Tree::Leaf(..) = beside { beside.clone() } else { Tree::Leaf(b'V', Vec::new()) };
            Tree::Inner(
                kind,
                match place {
                    0 => vec![below],
                    1 => vec![below, beside],
                    _ => vec![beside, below],
                },
            )
        })
    })
}

/// What is sent, and how it has to arrive.
fn frames() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let content = (vec(vec(any::<u8>(), 0..9), 0..3), vec(tree(), 0..4))
        .prop_map(|(texts, trees)| [usize::MAX, MAX_DEPTH].map(|limit| header(&texts, &trees, limit)).into());
    let other =
        (select(vec![FRAME_METHOD, FRAME_BODY, FRAME_HEARTBEAT]), vec(tree(), 0..2)).prop_map(|(kind, trees)| {
            let payload = trees.first().map(|_| header(&[], &trees, usize::MAX)).unwrap_or_default();
            (frame(kind, &payload), frame(kind, &payload))
        });
    vec(prop_oneof![content, other], 0..5).prop_map(|frames| {
        let (sent, arrived): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
        (sent.concat(), arrived.concat())
    })
}

/// As it comes out where reads cut it into pieces of these sizes, over and over.
fn passed(mut bytes: Vec<u8>, cuts: &[usize]) -> Vec<u8> {
    let (mut nesting, mut rest) = (NestingLimit::new(), &mut bytes[..]);
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at_mut((*cut).min(rest.len()));
        nesting.pass(now);
        rest = later;
    }
    bytes
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..9_usize, 1..200_usize], 1..8)
}

proptest! {
    #[test]
    fn what_nests_too_deep_arrives_as_bytes_and_all_else_as_it_was((sent, arrives) in frames(), cuts in cuts()) {
        prop_assert_eq!(passed(sent, &cuts), arrives);
    }

    #[test]
    fn cuts_make_no_difference_to_damaged_frames_and_only_types_are_changed(
        (mut bytes, _) in frames(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cuts in cuts(),
    ) {
        for (at, byte) in damage.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        let whole = passed(bytes.clone(), &[usize::MAX]);
        prop_assert_eq!(&passed(bytes.clone(), &cuts), &whole);
        prop_assert_eq!(bytes.len(), whole.len());
        prop_assert!(bytes.iter().zip(&whole).all(|(a, b)| a == b || (matches!(a, b'F' | b'A') && *b == OPAQUE)));
    }
}

/// A test's thread has the stack of lapin's.
#[test]
fn headers_of_a_thousand_levels_can_be_parsed() {
    for headers in deep_headers() {
        let arrived = passed(header_frame(&headers), &[usize::MAX]);
        let (rest, headers) = parse_field_table(&arrived[HEADERS_AT..]).unwrap();
        assert_eq!((rest, depth(&headers)), (&[FRAME_END][..], MAX_DEPTH));
    }
}
