//! dnsmasq as a child: started inside the namespace, heard, watched, restarted.
//!
//! It is left running when the worker ends (a parent-death signal would need `unsafe`, and VMs that
//! outlive the worker renew their leases); the next worker replaces it (`orphans`).

use std::{collections::VecDeque, net::Ipv4Addr, os::fd::OwnedFd, process::Stdio, sync::Arc, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStderr, Command},
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{
    Settings,
    hub::Hub,
    leases, orphans,
    words::{Said, understand},
};
use crate::{
    backoff_policy::{Backoff, Policy},
    net::namespace::Namespace,
    ports::net::NetError,
};

/// VMs live for hours; a lease that outlives a day's outage of the server costs nothing, because
/// leases are taken back with the VM.
const LEASE_TIME: &str = "24h";
/// Wait before a restart. No jitter: there is one per host.
const RESTART: Policy =
    Policy { initial: Duration::from_millis(50), max: Duration::from_secs(5), multiplier: 2.0, jitter: 0.0 };
/// Up for this long, it counts as sound again.
const SOUND_AFTER: Duration = Duration::from_secs(30);
/// How long it may take to end when asked.
const GRACE: Duration = Duration::from_secs(2);
/// Last lines kept to explain an end.
const LAST_WORDS: usize = 3;
/// Orders waiting; there is one caller for each.
const ORDERS: usize = 4;

/// The server as others see it.
pub(super) struct Server {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone)]
enum State {
    Starting,
    /// With a descriptor of the process, which cannot come to mean another one.
    Up(Arc<OwnedFd>),
    /// Its last words.
    Down(String),
}

enum Order {
    Restart,
    Stop(oneshot::Sender<()>),
}

/// Why a run of dnsmasq is over.
enum End {
    Died(String),
    Ordered(Order),
    /// Nobody needs it watched any more: the worker ends.
    Left,
}

impl Server {
    pub fn start(namespace: &Namespace, settings: Arc<Settings>, hub: Arc<Hub>) -> Self {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (tell, state) = watch::channel(State::Starting);
        namespace.spawn(Supervisor { settings, hub, tell, inbox }.run());
        Self { orders, state }
    }

    pub fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(_))
    }

    /// Has it read the reservations again; `false` where it is not up. (A SIGHUP before it
    /// installed its handler would end it.)
    pub fn reload(&self) -> bool {
        match &*self.state.borrow() {
            State::Up(process) => pidfd_send_signal(process, Signal::HUP).is_ok(),
            _ => false,
        }
    }

    pub async fn wait_up(&self, within: Duration) -> Result<(), NetError> {
        let mut state = self.state.clone();
        let up = state.wait_for(|state| matches!(state, State::Up(_)));
        if timeout(within, up).await.is_ok_and(|up| up.is_ok()) {
            return Ok(());
        }
        match &*self.state.borrow() {
            State::Down(words) if words.contains("not found") => {
                Err(NetError::Missing { what: "dnsmasq".to_owned(), hint: "install dnsmasq-base".to_owned() })
            }
            State::Down(words) => Err(NetError::DhcpDown(words.clone())),
            _ => Err(NetError::DhcpDown(format!("dnsmasq is not up after {within:?}"))),
        }
    }

    pub async fn restart(&self) {
        let mut state = self.state.clone();
        state.mark_unchanged();
        // Seen down before the caller waits for it to be up.
        if self.orders.send(Order::Restart).await.is_ok() {
            let _ = state.changed().await;
        }
    }

    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.orders.send(Order::Stop(done)).await.is_ok() {
            let _ = stopped.await;
        }
    }
}

struct Supervisor {
    settings: Arc<Settings>,
    hub: Arc<Hub>,
    tell: watch::Sender<State>,
    inbox: mpsc::Receiver<Order>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pace = Backoff::new(RESTART);
        loop {
            let since = Instant::now();
            match self.serve().await {
                End::Left => return,
                End::Ordered(Order::Restart) => {}
                End::Ordered(Order::Stop(done)) => {
                    let _ = done.send(());
                    return;
                }
                End::Died(words) => {
                    tracing::error!(words, "dnsmasq ended; restarting it");
                    self.tell.send_replace(State::Down(words));
                    if since.elapsed() > SOUND_AFTER {
                        pace.reset();
                    }
                    let wait = pace.next_delay();
                    // An order cuts the wait short.
                    match timeout(wait, self.inbox.recv()).await {
                        Ok(None) => return,
                        Ok(Some(Order::Stop(done))) => {
                            let _ = done.send(());
                            return;
                        }
                        Ok(Some(Order::Restart)) | Err(_) => {}
                    }
                }
            }
        }
    }

    /// One life of dnsmasq.
    async fn serve(&mut self) -> End {
        if let Err(error) = leases::prune(&self.settings) {
            return End::Died(format!("cannot write its lease file: {error}"));
        }
        match self.spawn() {
            Err(error) => End::Died(error.to_string()),
            Ok((mut child, process, words)) => {
                let end = self.hear(&process, words).await;
                match end {
                    End::Left => End::Left,
                    End::Ordered(order) => {
                        self.tell.send_replace(State::Down("it is being ended on request".to_owned()));
                        end_child(&mut child, &process).await;
                        End::Ordered(order)
                    }
                    End::Died(words) => {
                        // Its stderr is closed; it ends if it has not.
                        end_child(&mut child, &process).await;
                        End::Died(words)
                    }
                }
            }
        }
    }

    fn spawn(&self) -> std::io::Result<(Child, Arc<OwnedFd>, ChildStderr)> {
        let mut command = Command::new("dnsmasq");
        command.args(arguments(&self.settings)).arg(orphans::lease_file_argument(&self.settings.leases()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => std::io::Error::new(e.kind(), "dnsmasq not found"),
            _ => e,
        })?;
        let gone = || std::io::Error::other("it ended at once");
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or_else(gone)?;
        // Still our child, so the number cannot have been given to another process.
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let words = child.stderr.take().ok_or_else(gone)?;
        Ok((child, Arc::new(process), words))
    }

    /// Listens until its end or an order.
    async fn hear(&mut self, process: &Arc<OwnedFd>, words: ChildStderr) -> End {
        let (mut words, mut line) = (BufReader::new(words), Vec::new());
        let mut last: VecDeque<String> = VecDeque::with_capacity(LAST_WORDS);
        loop {
            tokio::select! {
                // What is cut off by an order stays in `line`, so nothing is lost.
                read = words.read_until(b'\n', &mut line) => {
                    if !read.is_ok_and(|bytes| bytes > 0) {
                        return End::Died(last.into_iter().collect::<Vec<_>>().join("; "));
                    }
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    let said = understand(&text);
                    tracing::trace!(text, "dnsmasq");
                    match &said {
                        Said::Ready => drop(self.tell.send_replace(State::Up(Arc::clone(process)))),
                        Said::Other => {
                            if last.len() == LAST_WORDS {
                                last.pop_front();
                            }
                            last.push_back(text);
                        }
                        _ => {}
                    }
                    self.hub.pass_on(said).await;
                }
                order = self.inbox.recv() => return order.map_or(End::Left, End::Ordered),
            }
        }
    }
}

/// `--no-ping`: its check whether an address is in use delays each ACK by 3 s; addresses are ours.
/// `--dhcp-authoritative`: a guest that asks for a former address is told no at once.
/// `--conf-file=/dev/null` and `--pid-file=`: nothing of a dnsmasq the host may run for itself.
fn arguments(settings: &Settings) -> Vec<String> {
    let (bridge, reservations) = (&settings.bridge, settings.reservations());
    let (network, mask) = network(settings.server, settings.prefix);
    let mut arguments = vec![
        "--keep-in-foreground".to_owned(),
        "--log-facility=-".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--pid-file=".to_owned(),
        "--port=0".to_owned(),
        "--no-hosts".to_owned(),
        "--no-resolv".to_owned(),
        "--no-ping".to_owned(),
        "--dhcp-authoritative".to_owned(),
        "--bind-interfaces".to_owned(),
        format!("--interface={bridge}"),
        "--except-interface=lo".to_owned(),
        format!("--dhcp-range={network},static,{mask},{LEASE_TIME}"),
        format!("--dhcp-hostsfile={}", reservations.display()),
    ];
    if !settings.dns.is_empty() {
        let servers: Vec<String> = settings.dns.iter().map(ToString::to_string).collect();
        arguments.push(format!("--dhcp-option=option:dns-server,{}", servers.join(",")));
    }
    arguments
}

fn network(address: Ipv4Addr, prefix: u8) -> (Ipv4Addr, Ipv4Addr) {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    (Ipv4Addr::from(u32::from(address) & mask), Ipv4Addr::from(mask))
}

async fn end_child(child: &mut Child, process: &OwnedFd) {
    let _ = pidfd_send_signal(process, Signal::TERM);
    if timeout(GRACE, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::error!(%error, "dnsmasq does not end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_and_mask_of_a_subnet() {
        let network = |address: [u8; 4], prefix| network(address.into(), prefix);
        assert_eq!(network([192, 168, 100, 1], 24), ([192, 168, 100, 0].into(), [255, 255, 255, 0].into()));
        assert_eq!(network([10, 7, 3, 1], 20), ([10, 7, 0, 0].into(), [255, 255, 240, 0].into()));
        assert_eq!(network([10, 0, 0, 1], 0), ([0, 0, 0, 0].into(), [0, 0, 0, 0].into()));
    }
}
