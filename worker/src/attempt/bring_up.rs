//! From nothing (or from what an earlier worker left) to a guest that runs. Steps run to their end
//! once begun: an order to remove is looked at between boot and wait, never in the middle of one.

use std::sync::Arc;

use stoker_schemas::Time;
use stoker_schemas::diagnosis::HostSignal;
use stoker_schemas::event::Stage;
use stoker_schemas::image::{Driver, ImageNetwork, Reach};
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::spec::{
    Network as NetworkSpec,
    kernel_args::{network_parameter, static_argument},
};

use super::{Report, Runner};
use crate::console::Capture;
use crate::disk;
use crate::images::Image;
use crate::ports::net::{AttachRequest, Attachment};
use crate::ports::vm::{Disk, DiskFormat, Vm, VmPlan};
use crate::reaper;

/// What a try holds while its VM exists.
pub(super) struct Held {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) attachment: Attachment,
    pub(super) console: Capture,
    /// What it was booted by; a worker that took it over does not know.
    pub(super) booted: Option<VmPlan>,
}

impl Runner {
    /// `None` when it failed; why is in [`Seen`](super::Seen).
    pub(super) async fn bring_up(&mut self) -> Option<Held> {
        match self.try_bring_up().await {
            Ok(held) => Some(held),
            Err(Some(error)) => {
                self.seen.host_error(error);
                None
            }
            Err(None) => None,
        }
    }

    /// `Err(None)`: the hypervisor's error has been noted already.
    async fn try_bring_up(&mut self) -> Result<Held, Option<HostSignal>> {
        let image = self.image()?;
        self.rig.images.check(&image).await.map_err(|e| HostSignal::Image(e.to_string()))?;
        let dir = match &self.rig.dirs {
            Some(dirs) => {
                dirs.create_vm(self.plan.vm).map_err(|e| HostSignal::Disk(format!("attempt's folder: {e}")))?
            }
            None => std::path::PathBuf::new(),
        };
        let ((disk, disk_at), attachment) =
            tokio::join!(self.disk(&image, &dir), self.rig.network.attach(self.attach_request(image.manifest.reach)));
        let disk = disk?;
        self.note_disk(disk.as_ref(), disk_at);
        let attachment = attachment.map_err(|e| HostSignal::Network(e.to_string()))?;
        self.seen.mark(Stage::NetworkReady, attachment.agent.to_string());
        let kernel_args = self.kernel_line(&image);
        self.seen.kernel_args(&kernel_args);
        one_owner_of_the_network(&image, &self.plan.spec.network, &kernel_args)?;
        let plan = VmPlan {
            vm: self.plan.vm,
            vcpus: self.plan.spec.vcpus,
            memory_mib: self.plan.spec.memory_mib,
            kernel: image.kernel(),
            initrd: image.initrd(),
            kernel_args,
            template_args: self.template_line(&image),
            disk,
            nic: attachment.nic.clone(),
            dir: dir.clone(),
            owner: attachment.owner,
        };
        let vm = self.rig.hypervisor.boot(plan.clone()).await.map_err(|e| {
            self.seen.boot_error(&e);
            None
        })?;
        self.seen.spawned(&*vm);
        self.note_record(&vm);
        if let Err(error) = self.rig.network.verify(self.plan.vm).await {
            // Nobody could ever reach it: no use in waiting for its deadline.
            let _ = vm.stop(std::time::Duration::ZERO).await;
            return Err(Some(HostSignal::Network(error.to_string())));
        }
        let console = Capture::start(vm.console(), &dir);
        Ok(Held { vm, attachment, console, booted: Some(plan) })
    }

    /// Takes over what an earlier worker started. `None` when the VM is gone.
    pub(super) async fn resume(&mut self) -> Option<Held> {
        if seeded::is_on(Bug::NotAdopted) {
            return None;
        }
        let vm = match self.find_vm().await {
            Ok(Some(vm)) => vm,
            Ok(None) => {
                self.seen.host_error(HostSignal::Interrupted("its VM was gone when the worker came back".to_owned()));
                return None;
            }
            Err(error) => {
                self.seen.boot_error(&error);
                return None;
            }
        };
        let noted = self.rig.dirs.as_ref().is_some_and(|dirs| dirs.read_record(self.plan.vm).is_some());
        if !noted && !vm.started().await {
            let why = "the worker ended between starting the VMM and booting the guest in it".to_owned();
            self.seen.host_error(HostSignal::Interrupted(why));
            let _ = vm.stop(std::time::Duration::ZERO).await;
            return None;
        }
        // An image that is gone allows nothing any more; the VM itself goes on.
        let reach = self.image().map(|image| image.manifest.reach).unwrap_or_default();
        let attachment = match self.rig.network.reattach(self.attach_request(reach)).await {
            Ok(attachment) => attachment,
            Err(error) => {
                self.seen.host_error(HostSignal::Network(error.to_string()));
                let _ = vm.stop(std::time::Duration::ZERO).await;
                return None;
            }
        };
        self.seen.resumed(vm.restored());
        if let Ok(image) = self.image() {
            let line = self.kernel_line(&image);
            self.seen.kernel_args(&line);
        }
        self.report(Report::Adopted { pid: vm.record().pid }).await;
        let dir = self.rig.dirs.as_ref().map(|d| d.vm(self.plan.vm)).unwrap_or_default();
        let console = Capture::start(vm.console(), &dir);
        Some(Held { vm, attachment, console, booted: None })
    }

    /// The VMM of this try, if it lives: by its record, or (cut off before the record was written)
    /// by its working directory.
    pub(super) async fn find_vm(&self) -> Result<Option<Arc<dyn Vm>>, crate::ports::vm::VmError> {
        let driver = self.rig.hypervisor.driver();
        let record = match &self.rig.dirs {
            Some(dirs) => dirs.read_record(self.plan.vm).or_else(|| reaper::find_vmm(dirs, self.plan.vm, driver)),
            None => Some(reaper::simulated_record(self.plan.vm)),
        };
        match record {
            Some(record) => self.rig.hypervisor.adopt(record).await,
            None => Ok(None),
        }
    }

    pub(super) fn image(&self) -> Result<Arc<Image>, HostSignal> {
        let image = self.rig.images.load(&self.plan.spec.image).map_err(|e| HostSignal::Image(e.to_string()))?;
        if let Some(wrong) = image.manifest.check_job(&self.plan.spec).first() {
            return Err(HostSignal::Image(format!("{}: {} ({})", wrong.field, wrong.message, wrong.hint)));
        }
        let driver = self.rig.hypervisor.driver();
        let drivers = &image.manifest.drivers;
        if !drivers.is_empty() && driver != Driver::Simulated && !drivers.contains(&driver) {
            let names: Vec<_> = drivers.iter().map(|d| d.as_str()).collect();
            let why = format!("it boots in {}, this host runs {}", names.join(" or "), driver.as_str());
            return Err(HostSignal::Image(why));
        }
        Ok(image)
    }

    /// The disk, and when it was there: the network is made at the same time.
    async fn disk(&self, image: &Image, dir: &std::path::Path) -> (Result<Option<Disk>, HostSignal>, Time) {
        let format = match self.rig.hypervisor.driver() {
            Driver::Firecracker => DiskFormat::Raw,
            Driver::Qemu => DiskFormat::Qcow2,
            Driver::Simulated => return (Ok(None), self.rig.clock.now()),
        };
        let rootfs = image.rootfs();
        let made = disk::prepare(rootfs.as_deref(), dir, self.plan.spec.disk_mib, format).await;
        (made.map_err(|e| HostSignal::Disk(e.to_string())), self.rig.clock.now())
    }

    fn note_disk(&mut self, disk: Option<&Disk>, at: Time) {
        let absent = match self.rig.hypervisor.driver() {
            Driver::Simulated => "simulated guests have no disk",
            Driver::Firecracker | Driver::Qemu => "the image has no disk",
        };
        self.seen.disk(at, disk.map(disk::describe).ok_or(absent));
    }

    fn attach_request(&self, reach: Reach) -> AttachRequest {
        AttachRequest {
            vm: self.plan.vm,
            address: self.plan.address,
            agent_port: self.plan.spec.readiness.port,
            dhcp: self.plan.spec.network == NetworkSpec::Dhcp,
            reach,
        }
    }

    /// Image's arguments, the job's, and our own, in this order: Linux takes the last of equals.
    fn kernel_line(&self, image: &Image) -> String {
        let given = [image.manifest.kernel_args.as_str(), self.plan.spec.kernel_args.as_str()].join(" ");
        let mut parts = vec![given.trim().to_owned()];
        if self.rig.hypervisor.driver() == Driver::Firecracker {
            parts.insert(0, defaults(&given));
        }
        if let NetworkSpec::Static(address) = self.plan.spec.network {
            parts.push(static_argument(address));
        }
        parts.push(format!("stoker.vm_id={}", self.plan.vm));
        parts.retain(|part| !part.is_empty());
        parts.join(" ")
    }

    /// The image's arguments for a guest that waits to be told who it is. A job with arguments of its
    /// own boots cold: templates are for what many jobs have in common.
    fn template_line(&self, image: &Image) -> Option<String> {
        let spec = &self.plan.spec;
        let common = spec.kernel_args.trim().is_empty() && spec.network == NetworkSpec::Dhcp;
        let line = format!("{} stoker.template=1", image.manifest.kernel_args.trim());
        (image.manifest.prewarmed && common).then(|| line.trim().to_owned())
    }

    /// Lets the hypervisor know what became of it. That a VM which booted cold failed says nothing
    /// of a template.
    pub(super) fn learn(&self, held: &Held, ready: bool) {
        if let Some(plan) = &held.booted
            && (ready || held.vm.restored())
        {
            self.rig.hypervisor.learn(plan, ready);
        }
    }

    fn note_record(&self, vm: &Arc<dyn Vm>) {
        if let Some(dirs) = &self.rig.dirs
            && let Err(error) = dirs.write_record(&vm.record())
        {
            // Without it the VMM is still found by its working directory.
            tracing::warn!(vm = %self.plan.vm, %error, "vm.json could not be written");
        }
    }
}

/// What Firecracker's guests get unless image or job say otherwise: Firecracker's own default has no
/// console, and a guest that reboots or panics is to end its VMM.
const DEFAULT_ARGUMENTS: [&str; 3] = ["console=ttyS0", "reboot=k", "panic=1"];

/// Those defaults that nobody gave a value.
fn defaults(given: &str) -> String {
    let name = |argument: &str| argument.split('=').next().unwrap_or_default().to_owned();
    let names: Vec<String> = given.split_ascii_whitespace().map(name).collect();
    let missing: Vec<_> = DEFAULT_ARGUMENTS.into_iter().filter(|wanted| !names.contains(&name(wanted))).collect();
    missing.join(" ")
}

/// The network rule once more, on the whole line: an image may break it by itself.
fn one_owner_of_the_network(image: &Image, network: &NetworkSpec, line: &str) -> Result<(), HostSignal> {
    if image.manifest.network != ImageNetwork::Dhcp || matches!(network, NetworkSpec::Static(_)) {
        return Ok(());
    }
    match line.split_ascii_whitespace().find(|argument| network_parameter(argument).is_some()) {
        None => Ok(()),
        Some(argument) => Err(HostSignal::Image(format!(
            "{argument} on its kernel command line configures the network, and its userland does so by DHCP: two \
             owners of eth0; remove it from image.json, or set \"network\": \"static\" there"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_give_way_to_what_is_given() {
        assert_eq!(defaults(""), "console=ttyS0 reboot=k panic=1");
        assert_eq!(defaults("console=hvc0 quiet panic=-1"), "reboot=k");
    }
}
