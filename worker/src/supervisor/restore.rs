//! Start: the books from the log, subscriptions, and the first word.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use stoker_schemas::event::{EventData, HostStarted};
use stoker_schemas::next::{Next, next};
use stoker_schemas::spec::Priority;
use stoker_schemas::{Epoch, JobId, JobState, VmId};
use tokio::sync::mpsc;

use super::admission::Capacity;
use super::books::{Job, Live};
use super::turn::{Turn, tags};
use super::{Input, Supervisor, SupervisorError};
use crate::attempt::{Mode, Order, Plan, Running, Whose};
use crate::damaged::Damaged;
use crate::log::{IndexChange, LogError};
use crate::ports::broker::{Delivery, Source};

impl Supervisor {
    /// Finds what the log says is on this host. Starts nothing yet.
    pub(super) fn restore(&mut self) -> Result<(), SupervisorError> {
        self.restore_host()?;
        for open in self.log.open_streams(Some(tags::ACTIVE)) {
            let read = open.map_err(SupervisorError::from).and_then(|open| {
                let id = JobId(open.stream);
                Ok((id, self.load(id, &Turn::default())?))
            });
            let (id, state) = match read {
                Ok((id, Some(state))) => (id, state),
                Ok((_, None)) => continue,
                Err(SupervisorError::Log(LogError::Corrupt { position, stream, what })) => {
                    // Its VM, if it has one, is no job's any more and is removed with what else none owns.
                    let damage = LogError::Corrupt { position, stream, what };
                    tracing::error!(?stream, error = %damage, "a job that was on this host cannot be read");
                    self.damaged.extend(stream.map(|stream| (JobId(stream), damage)));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some((epoch, need, address, is_up)) = on_host(&state) else { continue };
            self.books.force(need);
            self.up += u32::from(is_up);
            if let Some(address) = address {
                self.addresses.claim(address);
            }
            let pool = state.spec().map(|spec| spec.pool.clone()).unwrap_or_default();
            // With a lower limit than before there may be no place left; it boots all the same.
            let boot = if is_up { None } else { self.boots.try_begin() };
            let live = Live { epoch, pool, running: None, warm: None, need, address, boot, is_up, lost: None };
            self.jobs.insert(id, Job { state, live, ack: None });
        }
        Ok(())
    }

    /// VMs that the log says are on this host.
    pub fn known_vms(&self) -> impl Iterator<Item = VmId> {
        self.jobs.values().filter_map(|job| {
            let attempt = job.state.attempts.get(&job.live.epoch)?;
            attempt.started.as_ref().map(|started| started.value.vm)
        })
    }

    /// Takes over what runs, goes on with what was interrupted, and says that the host is there.
    pub(super) async fn begin(&mut self) -> Result<(), SupervisorError> {
        let adopted = self.up();
        for (id, job) in &mut self.jobs {
            let epoch = job.live.epoch;
            let Some(attempt) = job.state.attempts.get(&epoch) else { continue };
            let Some(started) = &attempt.started else { continue };
            let plan = Plan {
                whose: Whose::Job(*id, epoch),
                vm: started.value.vm,
                spec: started.value.spec.clone(),
                address: started.value.address,
                started_at: started.at,
            };
            let mode = Mode::Resume { ready: attempt.ready.is_some() };
            let running = Running::start(self.rig.clone(), plan, mode, self.reports.clone());
            if let Next::Remove(why) = next(&job.state, epoch) {
                running.order(Order::Remove(why));
            }
            job.live.running = Some(running);
        }
        let mut turn = Turn::default();
        let Capacity { slots, vcpus, memory_mib } = self.settings.capacity;
        turn.host_fact(EventData::HostStarted(HostStarted {
            slots,
            vcpus,
            memory_mib,
            max_booting: Some(self.settings.max_booting),
            labels: self.settings.labels.clone(),
            pools: self.settings.pools.iter().map(ToString::to_string).collect(),
            hypervisor: self.rig.hypervisor.describe(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adopted,
        }));
        self.settle_old_warm(&mut turn)?;
        self.tell_damaged(&mut turn)?;
        self.commit(turn).await
    }

    /// What could not be read is told of, and is nothing on this host any longer.
    fn tell_damaged(&mut self, turn: &mut Turn) -> Result<(), SupervisorError> {
        for (job, damage) in std::mem::take(&mut self.damaged) {
            let now = self.rig.clock.now();
            let damaged = Damaged::new(&self.log, job, damage, now);
            self.write(turn, &damaged.letter(&self.source, now), IndexChange::Keep)?;
            match damaged.gone(&self.source, now) {
                _ if !damaged.can_be_closed() => {}
                Some(gone) => self.write(turn, &gone, IndexChange::Remove)?,
                None => turn.close(job),
            }
        }
        Ok(())
    }

    /// Subscribes to jobs and commands. The supervisor reads them itself: a task in between would be
    /// one more wake-up on the way of every job.
    pub(super) async fn subscribe(&mut self) -> Result<Sources, SupervisorError> {
        let mut sources = Sources::new();
        for pool in self.settings.pools.clone() {
            for lane in [Priority::High, Priority::Normal] {
                let subscription = self.broker.subscribe(Source::Jobs(pool.clone(), lane)).await?;
                let counter = self.lanes.add(pool.clone(), lane, subscription.credit);
                sources.push(inputs(subscription.deliveries, move |job| Input::Job(counter.count(job))));
            }
        }
        let commands = self.broker.subscribe(Source::HostCommands).await?;
        let _ = commands.credit.send(COMMAND_CREDIT);
        self.command_credit = Some(commands.credit);
        sources.push(inputs(commands.deliveries, Input::Command));
        Ok(sources)
    }
}

/// Everything the broker delivers.
pub(super) type Sources = SelectAll<BoxStream<'static, Input>>;

/// Commands in hand at once.
const COMMAND_CREDIT: u32 = 64;

fn inputs(
    mut from: mpsc::Receiver<Delivery>,
    wrap: impl Fn(Delivery) -> Input + Send + 'static,
) -> BoxStream<'static, Input> {
    stream::poll_fn(move |context| from.poll_recv(context).map(|delivery| delivery.map(&wrap))).boxed()
}

/// The try that has something on this host, and what it takes.
fn on_host(state: &JobState) -> Option<(Epoch, Capacity, Option<std::net::Ipv4Addr>, bool)> {
    let (epoch, attempt) = state.attempts.iter().find(|(_, a)| a.has_vm())?;
    let started = attempt.started.as_ref()?;
    Some((*epoch, Capacity::of(&started.value.spec), started.value.address, attempt.is_up()))
}
