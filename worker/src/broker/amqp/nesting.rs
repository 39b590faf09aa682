//! Bounds how deep the headers of received messages nest.
//!
//! lapin parses a table in a table by recursion, on a thread whose stack size is fixed. Headers of a few KiB that nest
//! some hundred times would overflow that stack and end the process; their message would go back to its queue and end
//! the next one. So the bytes that the broker sends are followed here first, without recursion. Tables and arrays that
//! nest too deep get the type of a byte array, which is laid out the same (a length, then so many bytes): the message
//! arrives as before, with the deep part as bytes that nothing looks into.
//!
//! One byte is changed in place, no byte moves and none is held back, so it does not matter how reads cut the frames.
//!
//! Only content headers are followed: what is in them is up to whoever publishes. The one table in the methods that a
//! broker sends is its own (the properties of the server in `connection.start`).

use std::mem;

use lapin::{
    protocol::constants::{FRAME_BODY, FRAME_HEADER, FRAME_HEARTBEAT, FRAME_METHOD},
    types::AMQPType,
};

/// Tables and arrays within each other, the table of all headers included. RabbitMQ's own headers need four.
pub(crate) const MAX_DEPTH: usize = 32;

/// Bytes before a frame's payload: type, channel and size.
const FRAME_HEAD: u64 = 7;
/// Bytes after it.
const FRAME_TAIL: u64 = 1;
/// A broker that speaks another version sends a header without a size instead of a frame.
const PROTOCOL_HEADER: u8 = b'A';
const PROTOCOL_HEADER_BYTES: u64 = 8;
/// Bytes before the properties: class, weight, size of the body, and which properties there are.
const CONTENT_HEAD: u64 = 14;
/// Bits of the properties: the short texts that come before the headers (content type and encoding), and the headers.
const HAS_TEXTS: u64 = 0b1100_0000_0000_0000;
const HAS_HEADERS: u64 = 0b0010_0000_0000_0000;
/// A byte array.
const OPAQUE: u8 = b'x';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Array,
}

/// A table or an array that has begun.
#[derive(Debug)]
struct Container {
    kind: Kind,
    end: u64,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    FrameHead,
    ContentHead,
    TextLength,
    Text,
    ContainerLength(Kind),
    KeyLength,
    Key,
    Type,
    ValueLength,
    Value,
    /// Until the frame's end.
    Rest,
    /// Not AMQP, which ends the connection.
    Unknown,
}

/// Follows all that is received on one connection.
#[derive(Debug)]
pub(crate) struct NestingLimit {
    part: Part,
    /// Bytes of the part that are still to come.
    left: u64,
    /// Those that came, as a number, where the part is one. Of a long part, the last eight.
    number: u64,
    /// Where the part ends and where the payload ends, from the payload's beginning.
    at: u64,
    end: u64,
    /// Short texts that are still to come before the headers.
    texts: u32,
    open: Vec<Container>,
}

impl NestingLimit {
    pub(crate) fn new() -> Self {
        let open = Vec::with_capacity(MAX_DEPTH);
        Self { part: Part::FrameHead, left: FRAME_HEAD, number: 0, at: 0, end: 0, texts: 0, open }
    }

    /// Takes the next bytes, and changes the types of what nests too deep among them.
    pub(crate) fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let here = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (part, later) = bytes.split_at_mut(here);
            self.take(part);
            self.left -= here as u64;
            bytes = later;
            while self.left == 0 {
                self.advance();
            }
        }
    }

    /// Bytes of the present part.
    fn take(&mut self, bytes: &mut [u8]) {
        match self.part {
            Part::Text | Part::Key | Part::Value | Part::Rest | Part::Unknown => return,
            Part::Type if self.open.len() >= MAX_DEPTH => bytes.iter_mut().for_each(flatten),
            _ => {}
        }
        self.number = bytes.iter().fold(self.number, |number, byte| (number << 8) | u64::from(*byte));
    }

    /// From a part that is complete to the next one.
    fn advance(&mut self) {
        let number = mem::take(&mut self.number);
        match self.part {
            Part::FrameHead => self.frame(number),
            Part::ContentHead => {
                self.texts = (number & HAS_TEXTS).count_ones();
                if number & HAS_HEADERS == 0 { self.rest() } else { self.properties() }
            }
            Part::TextLength => self.next(Part::Text, number),
            Part::Text => self.properties(),
            Part::ContainerLength(kind) => self.open(kind, number),
            Part::KeyLength => self.next(Part::Key, number),
            Part::Key => self.next(Part::Type, 1),
            Part::Type => self.value(number),
            Part::ValueLength => self.next(Part::Value, number),
            Part::Value => self.item(),
            Part::Rest => self.begin(Part::FrameHead, FRAME_HEAD),
            Part::Unknown => self.begin(Part::Unknown, u64::MAX),
        }
    }

    fn frame(&mut self, head: u64) {
        // The channel stands between the two.
        let (kind, size) = ((head >> 48) as u8, head & u64::from(u32::MAX));
        match kind {
            FRAME_HEADER => {
                (self.at, self.end) = (0, size);
                self.open.clear();
                self.next(Part::ContentHead, CONTENT_HEAD);
            }
            FRAME_METHOD | FRAME_BODY | FRAME_HEARTBEAT => self.begin(Part::Rest, size + FRAME_TAIL),
            PROTOCOL_HEADER => self.begin(Part::Rest, PROTOCOL_HEADER_BYTES - FRAME_HEAD),
            _ => self.begin(Part::Unknown, u64::MAX),
        }
    }

    /// Up to the headers, and no further.
    fn properties(&mut self) {
        match self.texts.checked_sub(1) {
            Some(texts) => {
                self.texts = texts;
                self.next(Part::TextLength, 1);
            }
            None => self.next(Part::ContainerLength(Kind::Table), 4),
        }
    }

    fn open(&mut self, kind: Kind, length: u64) {
        match self.within(length) {
            Some(end) => {
                self.open.push(Container { kind, end });
                self.item();
            }
            None => self.rest(),
        }
    }

    /// The next item of the innermost container that has one.
    fn item(&mut self) {
        while self.open.last().is_some_and(|container| container.end <= self.at) {
            self.open.pop();
        }
        match self.open.last().map(|container| container.kind) {
            Some(Kind::Table) => self.next(Part::KeyLength, 1),
            Some(Kind::Array) => self.next(Part::Type, 1),
            None => self.rest(),
        }
    }

    /// lapin's own list of types says what it would look into.
    fn value(&mut self, id: u64) {
        use AMQPType as T;
        let Some(found) = T::from_id(char::from(id as u8)) else { return self.rest() };
        match found {
            T::Void => self.next(Part::Value, 0),
            T::Boolean | T::ShortShortInt | T::ShortShortUInt => self.next(Part::Value, 1),
            T::ShortInt | T::ShortUInt => self.next(Part::Value, 2),
            T::LongInt | T::LongUInt | T::Float => self.next(Part::Value, 4),
            T::DecimalValue => self.next(Part::Value, 5),
            T::LongLongInt | T::LongLongUInt | T::Double | T::Timestamp => self.next(Part::Value, 8),
            T::ShortString => self.next(Part::ValueLength, 1),
            T::LongString | T::ByteArray => self.next(Part::ValueLength, 4),
            T::FieldTable => self.next(Part::ContainerLength(Kind::Table), 4),
            T::FieldArray => self.next(Part::ContainerLength(Kind::Array), 4),
        }
    }

    /// Begins a part of the payload. One that does not fit is as far as any parser gets: the frame is malformed.
    fn next(&mut self, part: Part, length: u64) {
        match self.within(length) {
            Some(end) => {
                self.at = end;
                self.begin(part, length);
            }
            None => self.rest(),
        }
    }

    /// Where so many bytes end, if the innermost container has them.
    fn within(&self, length: u64) -> Option<u64> {
        let limit = self.open.last().map_or(self.end, |container| container.end);
        self.at.checked_add(length).filter(|end| *end <= limit)
    }

    fn rest(&mut self) {
        self.begin(Part::Rest, self.end - self.at + FRAME_TAIL);
    }

    fn begin(&mut self, part: Part, length: u64) {
        (self.part, self.left) = (part, length);
    }
}

fn flatten(id: &mut u8) {
    if matches!(AMQPType::from_id(char::from(*id)), Some(AMQPType::FieldTable | AMQPType::FieldArray)) {
        *id = OPAQUE;
    }
}

#[cfg(test)]
mod tests;
