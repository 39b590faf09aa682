//! What must hold: the truth as all hosts and the history tell it, compared with guests, broker and rows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;
use stoker_producer::readmodel::HostStatus;
use stoker_schemas::event::HOST_SOURCE;
use stoker_schemas::{Event, EventData, JobId, JobState, Phase, Time, VmId};
use stoker_worker::ports::broker::{CONTENT_BATCH, HistoryEntry};

use super::broker::Model;
use super::control::SimControl;
use super::host::SimHost;
use super::plan::Plan;
use super::rules::Rules;
use super::run::wall_at;

/// Violations told of one run; the first ones say enough.
const MAX_TOLD: usize = 20;

/// All that was ever said.
pub struct Truth {
    /// What must hold of each event.
    pub rules: Rules,
    /// Jobs.
    pub jobs: BTreeMap<JobId, JobState>,
    /// What was said, in the order in which it was heard of here.
    story: Vec<(JobId, String)>,
    /// Entries of the history read so far.
    read: usize,
    /// Ids of what each host has in its log.
    logged: BTreeMap<String, BTreeSet<String>>,
    /// Ids of what was published in a host's name.
    published: BTreeMap<String, BTreeSet<String>>,
    /// Jobs as the broker was told of them.
    told: BTreeMap<JobId, JobState>,
    /// Acknowledgements looked at.
    acknowledged: usize,
}

impl Truth {
    /// Nothing was said yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            rules: Rules::new(plan),
            jobs: BTreeMap::new(),
            story: Vec::new(),
            read: 0,
            logged: BTreeMap::new(),
            published: BTreeMap::new(),
            told: BTreeMap::new(),
            acknowledged: 0,
        }
    }

    /// Reads what is new in the logs and in the history.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn update(&mut self, hosts: &mut [SimHost], broker: &Model) -> Result<(), String> {
        self.rules.next_reading();
        let mut said = Vec::new();
        let state = broker.lock();
        for subject in &state.refused {
            self.rules.refused(subject);
        }
        for (number, entry) in (self.read..).zip(&state.history.archive[self.read..]) {
            let earlier = state.acknowledged[self.acknowledged..].iter().take_while(|(after, _)| *after <= number);
            for (_, message) in earlier {
                self.acknowledged += 1;
                self.rules.acknowledged(message, &self.told);
            }
            let arrived = state.history.arrived[number];
            for event in events_of(entry)? {
                if let Some(host) = event.source.strip_prefix(HOST_SOURCE)
                    && self.published.entry(host.to_owned()).or_default().insert(event.id())
                {
                    self.rules.arrived(&event, host, wall_at(arrived));
                }
                if let Some(id) = event.job() {
                    self.told.entry(id).or_insert_with(|| JobState::new(id)).apply(&event);
                }
                said.push(event);
            }
        }
        for (_, message) in &state.acknowledged[self.acknowledged..] {
            self.rules.acknowledged(message, &self.told);
        }
        self.acknowledged = state.acknowledged.len();
        let held = state.held_long.iter().map(|id| format!("message {id} was held for longer than it may be"));
        self.rules.broken.extend(held);
        self.rules.broken.extend(state.loops.iter().map(|id| format!("message {id} is put back again and again")));
        self.read = state.history.archive.len();
        drop(state);
        for event in &said {
            self.rules.hear(event);
            self.hear(event, "history");
        }
        for host in hosts {
            let news = host.news()?;
            let logged = self.logged.entry(host.name.clone()).or_default();
            logged.extend(news.iter().map(Event::id));
            for event in &news {
                self.rules.hear(event);
                self.rules.see(event, host, &self.jobs);
                self.hear(event, &host.name);
            }
        }
        Ok(())
    }

    fn hear(&mut self, event: &Event, from: &str) {
        let Some(id) = event.job() else { return };
        self.jobs.entry(id).or_insert_with(|| JobState::new(id)).apply(event);
        if from != "history" || !event.source.starts_with(HOST_SOURCE) {
            let why = match &event.data {
                EventData::JobDeferred(deferred) => format!(": attempt {}, {}", deferred.attempt, deferred.reason),
                EventData::JobRepublished(republished) => format!(": {}", republished.reason),
                _ => String::new(),
            };
            let line = format!("{} {} {} by {}{why}", event.time, event.epoch, event.data.kind(), event.source);
            self.story.push((id, line));
        }
    }

    /// What was said of a job, for the reader of a failure.
    pub fn story(&self, id: JobId) -> Vec<String> {
        self.story.iter().filter(|(of, _)| *of == id).map(|(_, line)| format!("  {line}")).collect()
    }

    /// What was told to others and is not on the disk of the host that told it.
    fn told_too_early(&self) -> Vec<String> {
        let empty = BTreeSet::new();
        let of = |host: &String| self.logged.get(host).unwrap_or(&empty);
        let missing = self.published.iter().flat_map(|(host, ids)| ids.difference(of(host)).map(move |id| (host, id)));
        missing.map(|(host, id)| format!("{host} published {id}, which is not in its log")).collect()
    }
}

fn events_of(entry: &HistoryEntry) -> Result<Vec<Event>, String> {
    let decode =
        |bytes: &[u8]| Event::decode(bytes, Time::UNIX_EPOCH).map_err(|e| format!("history {}: {e}", entry.offset));
    if entry.content_type != CONTENT_BATCH {
        return Ok(vec![decode(&entry.body)?]);
    }
    let parts: Vec<&RawValue> = serde_json::from_slice(&entry.body).map_err(|e| e.to_string())?;
    parts.into_iter().map(|part| decode(part.get().as_bytes())).collect()
}

/// Everything that does not hold although all is at rest.
pub fn at_rest(truth: &Truth, hosts: &[SimHost], control: &SimControl, broker: &Model) -> Vec<String> {
    let mut wrong = Vec::new();
    wrong.extend(broker.lock().unrest());
    jobs_ended(truth, control, &mut wrong);
    vms_are_theirs(truth, hosts, &mut wrong);
    rows_agree(truth, control, &mut wrong);
    let blocked = control.work().map_or_else(Vec::new, |work| work.blocked);
    wrong.extend(
        blocked.iter().map(|lane| format!("all jobs have ended, and the control plane says that some wait: {lane:?}")),
    );
    wrong.extend(truth.told_too_early());
    wrong.truncate(MAX_TOLD);
    wrong
}

fn jobs_ended(truth: &Truth, control: &SimControl, wrong: &mut Vec<String>) {
    for (id, promise) in control.book.lock().iter().filter(|(_, promise)| promise.is_confirmed) {
        let _ = promise;
        match truth.jobs.get(id) {
            None => wrong.push(format!("job {id} was confirmed and is lost")),
            Some(state) if state.phase() != Phase::Ready && !state.phase().is_closed() => {
                wrong.push(format!("job {id} was confirmed and rests as {}", state.phase()));
            }
            Some(state) if stops_and_is_up(state) => wrong.push(format!("job {id} is to stop and is up")),
            Some(state) if state.pending_cancel().is_some() => {
                wrong.push(format!("job {id} is to be cancelled and rests as {}", state.phase()));
            }
            Some(_) => {}
        }
    }
}

/// Somebody asked to stop it, knowing of the attempt that is up. By hand: the rules of the code under test may be wrong.
fn stops_and_is_up(state: &JobState) -> bool {
    let asked = state.stop_requested.values().filter_map(|request| request.value.attempt).max();
    state.tries().any(|(epoch, attempt)| attempt.is_up() && asked.is_some_and(|asked| epoch.attempt <= asked))
}

/// Each guest belongs to a job that is up, and each such job has one.
fn vms_are_theirs(truth: &Truth, hosts: &[SimHost], wrong: &mut Vec<String>) {
    let mut owners: BTreeMap<VmId, JobId> = BTreeMap::new();
    for (id, state) in &truth.jobs {
        let up: Vec<VmId> =
            state.tries().filter(|(_, a)| a.has_vm()).filter_map(|(_, a)| Some(a.started.as_ref()?.value.vm)).collect();
        let wanted = usize::from(state.phase() == Phase::Ready);
        if up.len() != wanted {
            wrong.push(format!("job {id} is {} and has {} VMs by the logs", state.phase(), up.len()));
        }
        owners.extend(up.into_iter().map(|vm| (vm, *id)));
    }
    let mut living = BTreeSet::new();
    for host in hosts {
        let here = host.living();
        let spare: Vec<_> = here.iter().filter(|vm| !owners.contains_key(vm)).collect();
        if spare.len() > host.warm() {
            wrong.push(format!("{} runs {} VMs that nobody owns: {spare:?}", host.name, spare.len()));
        }
        if host.world.attached() != here {
            wrong.push(format!(
                "{}: network cards and VMs differ: {:?} and {here:?}",
                host.name,
                host.world.attached()
            ));
        }
        let conflicts = host.world.stats().address_conflicts;
        if conflicts > 0 {
            wrong.push(format!("{}: {conflicts} addresses were given out twice", host.name));
        }
        living.extend(here);
    }
    for (vm, job) in owners.iter().filter(|(vm, _)| !living.contains(vm)) {
        wrong.push(format!("VM {vm} of job {job} does not run"));
    }
}

/// What pages show is what hosts say.
fn rows_agree(truth: &Truth, control: &SimControl, wrong: &mut Vec<String>) {
    let compared = control.rows(|rows| {
        match rows.hosts() {
            Ok(hosts) => {
                let down = hosts.iter().filter(|host| host.status != HostStatus::Up);
                wrong.extend(down.map(|host| format!("host {} works and its row says {:?}", host.name, host.status)));
            }
            Err(error) => wrong.push(format!("the rows of hosts cannot be read: {error}")),
        }
        for (id, state) in &truth.jobs {
            match rows.summary(*id) {
                Ok(Some(row)) if row.phase == state.phase() => {}
                Ok(Some(row)) => wrong.push(format!("job {id} is {} and its row says {}", state.phase(), row.phase)),
                Ok(None) => wrong.push(format!("job {id} has no row")),
                Err(error) => wrong.push(format!("rows cannot be read: {error}")),
            }
        }
    });
    if compared.is_none() {
        wrong.push("the control plane does not run".to_owned());
    }
}
