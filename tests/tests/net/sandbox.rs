//! A namespace of a test's own, gone with the test however it ends; and the guest's end of a tap.

use std::{
    fs::{File, Permissions},
    io::{Read, Write},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Instant,
};

use stoker_schemas::id::Mac;
use stoker_tests::{DEADLINE, skipped};
use stoker_worker::{
    net::{BridgeConfig, BridgedNetwork, Namespace, tap},
    ports::net::NetSignal,
};
use tokio::{sync::mpsc, time::timeout};
use uuid::Uuid;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 1);

pub struct Sandbox {
    pub name: String,
    pub namespace: Namespace,
    pub dir: tempfile::TempDir,
}

impl Sandbox {
    /// `None`, with a line that says why, where a network cannot be made.
    pub async fn open(test: &str) -> Option<Self> {
        let user = Command::new("id").arg("-u").output().unwrap().stdout;
        if user.trim_ascii() != b"0" {
            skipped(test, "needs root");
            return None;
        }
        for (program, argument) in [("dnsmasq", "--version"), ("ip", "-V")] {
            if Command::new(program).arg(argument).output().is_err() {
                skipped(test, &format!("needs {program}"));
                return None;
            }
        }
        let name = format!("st-{}", &Uuid::now_v7().simple().to_string()[24..]);
        let namespace = Namespace::open(&name).await.unwrap();
        // In memory, as the network's files are meant to be, and open to dnsmasq's own user.
        let dir = tempfile::Builder::new().prefix("st-").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Some(Self { name, namespace, dir })
    }

    pub async fn network(&self) -> BridgedNetwork {
        let config = BridgeConfig::new(self.dir.path().join("dhcp"));
        BridgedNetwork::open(self.namespace.clone(), config).await.unwrap()
    }

    /// `ip` inside; its output.
    pub fn ip(&self, arguments: &[&str]) -> String {
        let output = Command::new("ip").args(["-n", &self.name]).args(arguments).output().unwrap();
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Processes inside (this one's main thread is not).
    pub fn processes(&self) -> Vec<String> {
        let output = Command::new("ip").args(["netns", "pids", &self.name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    pub fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join("dhcp").join(name)).unwrap()
    }

    /// The guest's end of this tap, from when frames pass. (The bridge takes notice of a carrier a
    /// moment later; a guest that boots is slower than that.)
    pub async fn guest(&self, tap: &str, mac: Mac) -> Guest {
        let guest = self.unheard_guest(tap, mac).await;
        let started = Instant::now();
        let forwards = || {
            let passes = |link: &str, mark: &str| self.ip(&["-d", "link", "show", link]).contains(mark);
            passes(tap, "state forwarding") && passes("st0", "LOWER_UP")
        };
        while !forwards() {
            assert!(started.elapsed() < DEADLINE, "{tap} does not forward");
        }
        guest
    }

    /// The guest's end of a tap that need not be on the bridge.
    pub async fn unheard_guest(&self, tap: &str, mac: Mac) -> Guest {
        let name = tap.to_owned();
        let tap = self.namespace.run(move || tap::open(&name)).await.unwrap();
        Guest::new(tap, mac)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
        if Path::new("/run/netns").join(&self.name).exists() {
            let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        }
    }
}

/// A guest's DHCP client on bare frames.
pub struct Guest {
    tap: File,
    mac: Mac,
    /// DHCP replies: message type and address given.
    replies: mpsc::UnboundedReceiver<(Mac, u8, Ipv4Addr)>,
}

pub const OFFER: u8 = 2;
pub const ACK: u8 = 5;

impl Guest {
    fn new(tap: File, mac: Mac) -> Self {
        let (sender, replies) = mpsc::unbounded_channel();
        let mut reader = tap.try_clone().unwrap();
        // Ends with the tap.
        std::thread::spawn(move || {
            let mut frame = [0; 2048];
            while let Ok(length) = reader.read(&mut frame) {
                if let Some(reply) = reply(&frame[tap::VNET_HEADER_BYTES.min(length)..length]) {
                    let _ = sender.send(reply);
                }
            }
        });
        Self { tap, mac, replies }
    }

    /// The whole exchange; the address got.
    pub async fn lease(&mut self) -> Ipv4Addr {
        self.discover(self.mac);
        let offered = self.expect(OFFER).await;
        self.send(self.mac, 3, Some(offered));
        self.expect(ACK).await
    }

    /// Looks for a server under any MAC.
    pub fn discover(&mut self, mac: Mac) {
        self.send(mac, 1, None);
    }

    /// The next reply, whoever it is for.
    pub async fn reply(&mut self) -> (Mac, u8, Ipv4Addr) {
        timeout(DEADLINE, self.replies.recv()).await.expect("no DHCP reply in time").expect("the tap is gone")
    }

    async fn expect(&mut self, kind: u8) -> Ipv4Addr {
        let (mac, got, address) = self.reply().await;
        assert_eq!((mac, got), (self.mac, kind), "another DHCP reply, for {address}");
        address
    }

    fn send(&mut self, mac: Mac, kind: u8, wanted: Option<Ipv4Addr>) {
        let mut packet = vec![0_u8; 236];
        packet[..4].copy_from_slice(&[1, 1, 6, 0]);
        packet[4..8].copy_from_slice(&mac.0[2..]);
        packet[28..34].copy_from_slice(&mac.0);
        packet.extend([99, 130, 83, 99, 53, 1, kind]);
        if let Some(wanted) = wanted {
            packet.extend([50, 4]);
            packet.extend(wanted.octets());
            packet.extend([54, 4]);
            packet.extend(SERVER.octets());
        }
        packet.push(255);
        self.tap.write_all(&frame(mac, &packet)).unwrap();
    }
}

/// A broadcast UDP frame from port 68 to 67, behind the tap's own header.
fn frame(mac: Mac, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; tap::VNET_HEADER_BYTES];
    frame.extend([0xff; 6]);
    frame.extend(mac.0);
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend([0, 68, 0, 67]);
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]); // no checksum
    frame.extend(payload);
    frame
}

/// A DHCP reply's client, type and address.
fn reply(frame: &[u8]) -> Option<(Mac, u8, Ipv4Addr)> {
    let to_client = frame.get(12..14)? == [8, 0] && frame.get(23)? == &17 && frame.get(36..38)? == [0, 68];
    let dhcp = frame.get(42..).filter(|_| to_client)?;
    let address: [u8; 4] = dhcp.get(16..20)?.try_into().ok()?;
    let mac = Mac(dhcp.get(28..34)?.try_into().ok()?);
    // dnsmasq's first option is the type.
    Some((mac, *dhcp.get(242)?, address.into()))
}

/// The next signal.
pub async fn signal(signals: &mut mpsc::Receiver<NetSignal>) -> NetSignal {
    timeout(DEADLINE, signals.recv()).await.expect("no signal in time").expect("signals ended")
}
