//! Start: the books from the log, subscriptions, and the first word.

use stoker_schemas::event::{EventData, HostStarted};
use stoker_schemas::next::{Next, next};
use stoker_schemas::spec::Priority;
use stoker_schemas::{Epoch, JobId, JobState, VmId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::admission::Capacity;
use super::books::{Job, Live};
use super::turn::{Turn, tags};
use super::{Input, Supervisor, SupervisorError};
use crate::attempt::{Mode, Order, Plan, Running};
use crate::ports::broker::{Delivery, Source};

impl Supervisor {
    /// Finds what the log says is on this host. Starts nothing yet.
    pub(super) fn restore(&mut self) -> Result<(), SupervisorError> {
        let open: Vec<_> = self.log.open_streams(Some(tags::ACTIVE)).collect::<Result<_, _>>()?;
        for stream in open {
            let id = JobId(stream.stream);
            let Some(state) = self.load(id)? else { continue };
            let Some((epoch, need, address, is_up)) = on_host(&state) else { continue };
            self.books.force(need);
            self.up += u32::from(is_up);
            if let Some(address) = address {
                self.addresses.claim(address);
            }
            let live = Live { epoch, running: None, need, address, is_up, lost: None };
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
                job: *id,
                epoch,
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
            labels: self.settings.labels.clone(),
            pools: self.settings.pools.iter().map(ToString::to_string).collect(),
            hypervisor: self.rig.hypervisor.describe(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adopted,
        }));
        self.commit(turn).await
    }

    /// Subscribes to jobs and commands; everything comes in through one channel.
    pub(super) async fn subscribe(
        &mut self,
        inputs: mpsc::Sender<Input>,
        published: watch::Receiver<u64>,
    ) -> Result<Vec<JoinHandle<()>>, SupervisorError> {
        let mut pumps = Vec::new();
        for pool in self.settings.pools.clone() {
            for lane in [Priority::High, Priority::Normal] {
                let subscription = self.broker.subscribe(Source::Jobs(pool.clone(), lane)).await?;
                self.credits.push(subscription.credit);
                pumps.push(tokio::spawn(pump(subscription.deliveries, inputs.clone(), Input::Job)));
            }
        }
        let commands = self.broker.subscribe(Source::HostCommands).await?;
        let _ = commands.credit.send(COMMAND_CREDIT);
        // The sender lives as long as the pump: dropping it would end the subscription.
        let (credit, deliveries) = (commands.credit, commands.deliveries);
        let commands_in = inputs.clone();
        pumps.push(tokio::spawn(async move {
            pump(deliveries, commands_in, Input::Command).await;
            drop(credit);
        }));
        pumps.push(tokio::spawn(pump_published(published, inputs)));
        Ok(pumps)
    }
}

/// Commands in hand at once.
const COMMAND_CREDIT: u32 = 64;

async fn pump(mut from: mpsc::Receiver<Delivery>, into: mpsc::Sender<Input>, wrap: fn(Delivery) -> Input) {
    while let Some(delivery) = from.recv().await {
        if into.send(wrap(delivery)).await.is_err() {
            return;
        }
    }
}

async fn pump_published(mut published: watch::Receiver<u64>, into: mpsc::Sender<Input>) {
    while published.changed().await.is_ok() {
        let position = *published.borrow_and_update();
        if into.send(Input::Published(position)).await.is_err() {
            return;
        }
    }
}

/// The try that has something on this host, and what it takes.
fn on_host(state: &JobState) -> Option<(Epoch, Capacity, Option<std::net::Ipv4Addr>, bool)> {
    let (epoch, attempt) = state.attempts.iter().find(|(_, a)| a.has_vm())?;
    let started = attempt.started.as_ref()?;
    Some((*epoch, Capacity::of(&started.value.spec), started.value.address, attempt.is_up()))
}
