//! New inputs from old ones: bytes are changed, moved and repeated; JSON is changed as JSON, because a broken
//! brace is refused before anything of interest is looked at.

use serde_json::{Map, Value};

/// Longest input. Larger than any message that is read, so that bounds are crossed.
const MAX_INPUT_BYTES: usize = 80 * 1024;
/// Changes of one input.
const MAX_CHANGES: usize = 6;

/// What parsers stumble over.
const NUMBERS: [i64; 12] =
    [0, 1, -1, 255, 256, 65_535, 65_536, 4_294_967_295, 4_294_967_296, i64::MAX, i64::MIN, -253_402_300_800];
const WORDS: [&str; 20] = [
    "",
    "\0",
    "\n",
    "\r\n",
    "\u{1b}[",
    "\u{202e}",
    "é",
    "𝄞",
    "{{",
    "}}",
    "{%",
    "../",
    "=",
    ":",
    "\"",
    "ip=dhcp",
    "%00",
    "1e999",
    "9999-12-31T23:59:59Z",
    "-9999-01-01T00:00:00Z",
];

/// Makes inputs from valid ones; the same seed makes the same ones.
#[derive(Debug)]
pub struct Mutator {
    random: fastrand::Rng,
    samples: Vec<Vec<u8>>,
}

impl Mutator {
    /// Starts from these.
    pub fn new(samples: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), samples }
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.sample();
        for _ in 0..self.random.usize(1..=MAX_CHANGES) {
            let parsed = if self.random.u8(0..4) > 0 { serde_json::from_slice(&input).ok() } else { None };
            input = match parsed {
                Some(mut value) => {
                    self.change_json(&mut value);
                    serde_json::to_vec(&value).unwrap_or(input)
                }
                None => self.change_bytes(input),
            };
            input.truncate(MAX_INPUT_BYTES);
        }
        input
    }

    fn sample(&mut self) -> Vec<u8> {
        if self.samples.is_empty() {
            return Vec::new();
        }
        let index = self.random.usize(..self.samples.len());
        self.samples[index].clone()
    }

    fn word(&mut self) -> &'static str {
        WORDS[self.random.usize(..WORDS.len())]
    }

    fn change_bytes(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let place = self.random.usize(..=bytes.len());
        let end = self.random.usize(place..=bytes.len().min(place + 64));
        match self.random.u8(0..9) {
            0 if place < bytes.len() => bytes[place] ^= 1 << self.random.u8(0..8),
            1 if place < bytes.len() => bytes[place] = self.random.u8(..),
            2 => drop(bytes.drain(place..end)),
            3 => drop(bytes.splice(place..place, self.word().bytes())),
            4 => bytes.truncate(place),
            5 => {
                let piece = bytes[place..end].repeat(1 << self.random.u8(0..12));
                bytes.splice(place..place, piece);
            }
            6 => {
                let other = self.sample();
                let from = self.random.usize(..=other.len());
                bytes.splice(place.., other[from..].iter().copied());
            }
            7 => {
                let number = NUMBERS[self.random.usize(..NUMBERS.len())];
                bytes.splice(place..end, number.to_string().into_bytes());
            }
            _ => bytes.insert(place, self.random.u8(..)),
        }
        bytes
    }

    /// Changes one value of the tree, on a random way down.
    fn change_json(&mut self, value: &mut Value) {
        let goes_down = self.random.u8(0..5) > 0;
        match value {
            Value::Object(map) if goes_down && !map.is_empty() => {
                let index = self.random.usize(..map.len());
                if self.random.u8(0..6) == 0 {
                    self.change_keys(map, index);
                } else if let Some((_, inner)) = map.iter_mut().nth(index) {
                    self.change_json(inner);
                }
            }
            Value::Array(list) if goes_down && !list.is_empty() => {
                let index = self.random.usize(..list.len());
                if self.random.u8(0..6) == 0 {
                    let more = vec![list[index].clone(); 1 << self.random.u8(0..8)];
                    list.extend(more);
                } else {
                    self.change_json(&mut list[index]);
                }
            }
            other => *other = self.other_value(other),
        }
    }

    fn change_keys(&mut self, map: &mut Map<String, Value>, index: usize) {
        let Some(key) = map.keys().nth(index).cloned() else { return };
        let value = map.remove(&key).unwrap_or(Value::Null);
        match self.random.u8(0..3) {
            0 => {}
            1 => drop(map.insert(format!("{key}{}", self.word()), value)),
            _ => drop(map.insert(self.word().repeat(40), value)),
        }
    }

    fn other_value(&mut self, old: &Value) -> Value {
        let text = old.as_str().unwrap_or_default();
        match self.random.u8(0..10) {
            0 => Value::Null,
            1 => Value::Bool(self.random.bool()),
            2 | 3 => NUMBERS[self.random.usize(..NUMBERS.len())].into(),
            4 => self.random.f64().into(),
            5 => u64::MAX.into(),
            6 => Value::String(format!("{text}{}", self.word())),
            7 => Value::String(format!("{text}{}", self.word()).repeat(1 << self.random.u8(0..13))),
            8 => (0..self.random.u8(0..120)).fold(old.clone(), |inner, _| Value::Array(vec![inner])),
            _ => Value::Object(Map::from_iter([(self.word().to_owned(), old.clone())])),
        }
    }
}
