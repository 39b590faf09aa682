//! Random appends, compactions and restarts against the plainest model of a log.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, MAX_EVENT_BYTES};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{id, open, runtime};

#[derive(Debug, Clone)]
enum Step {
    Append { stream: u128, lie: bool, sizes: Vec<usize>, index: IndexChange },
    Cursor(u64),
    Compact(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 0..600_usize, 1 => 5_000..7_000_usize, 1 => 12_000..=MAX_EVENT_BYTES];
    let index = prop_oneof![
        Just(IndexChange::Keep),
        (0..3_u8, 0..5_u64).prop_map(|(tag, sort)| IndexChange::Set(tag, sort)),
        Just(IndexChange::Remove)
    ];
    let append = (1..6_u128, prop::bool::weighted(0.1), prop::collection::vec(size, 0..5), index)
        .prop_map(|(stream, lie, sizes, index)| Step::Append { stream, lie, sizes, index });
    prop_oneof![
        12 => append,
        1 => (0..100_u64).prop_map(Step::Cursor),
        2 => (1..40_usize).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// What the log should be, kept in the plainest way.
#[derive(Default)]
struct Model {
    events: Vec<(Uuid, u64, Bytes)>,
    versions: BTreeMap<Uuid, u64>,
    open: BTreeMap<Uuid, (u8, u64)>,
    cursor: u64,
}

impl Model {
    fn append(&mut self, call: &Append) {
        let version = self.versions.entry(call.stream).or_default();
        for event in &call.events {
            *version += 1;
            self.events.push((call.stream, *version, event.clone()));
        }
        match call.index {
            IndexChange::Keep => {}
            IndexChange::Set(tag, sort) => drop(self.open.insert(call.stream, (tag, sort))),
            IndexChange::Remove => drop(self.open.remove(&call.stream)),
        }
    }

    fn check(&self, log: &EventLog) {
        let records = log.scan(1, 10_000).unwrap();
        assert_eq!(records.len(), self.events.len());
        for (n, (record, (stream, version, payload))) in records.iter().zip(&self.events).enumerate() {
            assert_eq!((record.position, record.stream, record.version), (n as u64 + 1, *stream, *version));
            assert_eq!(&record.payload, payload);
        }
        for stream in self.versions.keys() {
            let of_stream: Vec<_> = records.iter().filter(|record| record.stream == *stream).cloned().collect();
            assert_eq!(log.read_stream(*stream).unwrap(), of_stream);
        }
        let mut open: Vec<_> = self.open.iter().map(|(stream, (tag, sort))| (*tag, *sort, *stream)).collect();
        open.sort_unstable();
        let listed = log.open_streams(None).map(|open| open.map(|open| (open.tag, open.sort, open.stream)).unwrap());
        assert_eq!(listed.collect::<Vec<_>>(), open);
        assert_eq!(log.cursor("reader").unwrap(), self.cursor);
        let report = log.verify().unwrap();
        assert_eq!((report.events, report.first_bad), (self.events.len() as u64, None));
    }
}

fn run_steps(steps: Vec<Step>) {
    let dir = TempDir::new().unwrap();
    let runtime = runtime();
    let mut log = open(dir.path());
    let mut model = Model::default();
    for (n, step) in steps.into_iter().enumerate() {
        match step {
            Step::Append { stream, lie, sizes, index } => {
                let version = model.versions.get(&id(stream)).copied().unwrap_or(0);
                let expected = Expected::Version(version + u64::from(lie));
                let events: Vec<_> = sizes.iter().map(|size| Bytes::from(vec![n as u8; *size])).collect();
                let refused = lie || (version == 0 && events.is_empty());
                let call = Append { stream: id(stream), expected, events, index };
                let result = runtime.block_on(log.append(vec![call.clone()]));
                assert_eq!(result.is_err(), refused, "{result:?}");
                if !refused {
                    model.append(&call);
                }
            }
            Step::Cursor(position) => {
                log.set_cursor("reader", position).unwrap();
                model.cursor = position;
            }
            Step::Compact(events) => drop(runtime.block_on(log.compact(events)).unwrap()),
            Step::Reopen => {
                drop(log);
                log = open(dir.path());
                model.check(&log);
            }
        }
    }
    model.check(&log);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_the_model(steps in prop::collection::vec(steps(), 1..60)) {
        run_steps(steps);
    }
}
