//! The network without privileges: QEMU's own, with one loopback port per VM. The host sees no
//! DHCP there, and TCP connects even while the guest does not: only an HTTP answer counts.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use stoker_schemas::VmId;
use tokio::sync::mpsc;

use super::system;
use crate::ports::net::{AttachRequest, Attachment, NetError, NetEvidence, Network, Nic};

/// Ports tried before giving up: each try only fails where we gave the port out already.
const PORT_TRIES: usize = 64;

/// Loopback ports, written down so that a restarted worker finds its VMs again.
pub struct UserNetwork {
    dir: PathBuf,
    ports: Mutex<BTreeMap<VmId, u16>>,
}

impl UserNetwork {
    /// `dir` keeps one small file per VM.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, NetError> {
        let dir = dir.into();
        let read = || {
            fs::create_dir_all(&dir)?;
            let mut ports = BTreeMap::new();
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                let vm = path.file_name().and_then(|name| name.to_str()?.parse::<VmId>().ok());
                if let (Some(vm), Ok(port)) = (vm, fs::read_to_string(&path)?.trim().parse()) {
                    ports.insert(vm, port);
                }
            }
            Ok(ports)
        };
        let ports = read().map_err(|e: io::Error| system(format!("read {}", dir.display()), &e))?;
        Ok(Self { ports: Mutex::new(ports), dir })
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<VmId, u16>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port nobody listens on. QEMU can only bind it itself, so another program might be quicker;
    /// QEMU then ends with that message and the attempt is repeated with another port.
    fn choose(&self, vm: VmId) -> io::Result<u16> {
        let mut ports = self.ports();
        for _ in 0..PORT_TRIES {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if !ports.values().any(|taken| *taken == port) {
                fs::write(self.dir.join(vm.to_string()), port.to_string())?;
                ports.insert(vm, port);
                return Ok(port);
            }
        }
        Err(io::Error::other("every port offered is given out already"))
    }
}

fn attachment(request: &AttachRequest, port: u16) -> Attachment {
    let nic = Nic::User { mac: request.vm.mac(), host_port: port, guest_port: request.agent_port };
    let (_, signals) = mpsc::channel(1);
    Attachment { nic, agent: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), signals, sees_dhcp: false, owner: None }
}

#[async_trait]
impl Network for UserNetwork {
    fn describe(&self) -> String {
        "user network, one port on 127.0.0.1 per VM".to_owned()
    }

    fn pool(&self) -> Vec<Ipv4Addr> {
        Vec::new()
    }

    async fn attach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        if !request.dhcp {
            let cause = "QEMU's user network gives addresses by DHCP only".to_owned();
            return Err(NetError::System { what: "give the VM a static address".to_owned(), cause });
        }
        self.detach(request.vm, None).await?;
        let port = self.choose(request.vm).map_err(|e| system("choose a port", &e))?;
        Ok(attachment(&request, port))
    }

    async fn reattach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        let port = self.ports().get(&request.vm).copied();
        let port = port.ok_or_else(|| NetError::Missing {
            what: format!("the port of VM {}", request.vm),
            hint: "stop the VM and let its job be tried again".to_owned(),
        })?;
        Ok(attachment(&request, port))
    }

    async fn detach(&self, vm: VmId, _: Option<Ipv4Addr>) -> Result<(), NetError> {
        match fs::remove_file(self.dir.join(vm.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system(format!("forget the port of VM {vm}"), &error));
            }
            _ => {}
        }
        self.ports().remove(&vm);
        Ok(())
    }

    async fn evidence(&self, _: VmId, _: Option<Ipv4Addr>) -> NetEvidence {
        NetEvidence::default()
    }

    async fn taps(&self) -> Result<Vec<String>, NetError> {
        Ok(Vec::new())
    }

    async fn remove_tap(&self, _: &str) -> Result<(), NetError> {
        Ok(())
    }
}
