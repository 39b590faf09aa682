//! Templates: a guest that has booted, saved before it is anybody, so that a VM of the same kind
//! goes on from there instead of booting.
//!
//! ```text
//! a VM booted cold becomes ready -> in the background: boot once more with stoker.template=1,
//!                                   "template ready" -> save state and memory -> the store
//! the next VM of that kind       -> memory mapped copy-on-write, state loaded, told who it is
//! its copy does not become ready -> the template goes; VMs of that kind boot cold again
//! ```
//!
//! A template depends on everything that shaped its memory, which its [`store::Key`] is made of; it
//! never outlives a boot of the host, so nothing of it needs to be flushed.

mod make;
mod resume;
mod store;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::sync::Semaphore;

use self::store::{Key, Store};
pub use self::{
    resume::{go_on, lay_serial, remove_serial, was_told},
    store::Template,
};
use super::launch::Launcher;
use crate::{boots::Boots, ports::vm::VmPlan};

/// After so many failures of one kind nothing is tried any more until the worker starts again.
const MAX_STRIKES: u32 = 3;
/// Kinds whose failures are remembered.
const MAX_REMEMBERED: usize = 256;

/// Where templates lie.
#[derive(Debug, Clone)]
pub struct TemplateFolders {
    /// Finished ones.
    pub store: PathBuf,
    /// Where VMs have their folders: one whose owner is not known is removed by the reaper, and so
    /// is a template that a dead worker was making.
    pub drafts: PathBuf,
}

/// The templates of one host.
pub struct Templates {
    store: Arc<Store>,
    drafts: PathBuf,
    strikes: Arc<Mutex<HashMap<Key, u32>>>,
    /// One at a time: making one costs as much as a boot.
    making: Arc<Semaphore>,
    /// Places for boots on this host; none set, there is no limit.
    boots: OnceLock<Boots>,
}

impl Templates {
    /// Opens the store; `hypervisor` names the program that runs them and its version.
    pub fn open(folders: TemplateFolders, hypervisor: String) -> io::Result<Self> {
        Ok(Self {
            store: Arc::new(Store::open(folders.store, hypervisor)?),
            drafts: folders.drafts,
            strikes: Arc::default(),
            making: Arc::new(Semaphore::new(1)),
            boots: OnceLock::new(),
        })
    }

    /// A template is booted in one of these places.
    pub fn share_boots(&self, boots: Boots) {
        // Said once, at the start of a worker.
        let _ = self.boots.set(boots);
    }

    /// A template for this plan, whole, made by such a launcher.
    pub fn find(&self, launcher: &Launcher, plan: &VmPlan) -> Option<Template> {
        self.store.find(&self.key(launcher, plan)?)
    }

    /// Throws this plan's template away.
    pub fn forget(&self, launcher: &Launcher, plan: &VmPlan) {
        if let Some(key) = self.key(launcher, plan) {
            self.store.remove(&key);
            strike(&self.strikes, &key);
        }
    }

    /// Makes a template for this plan in the background, unless there is one, or one is being made.
    pub fn make_soon(&self, launcher: &Launcher, plan: &VmPlan) {
        let Some(key) = self.key(launcher, plan).filter(|key| !self.store.has(key) && !self.is_out(key)) else {
            return;
        };
        let Ok(permit) = Arc::clone(&self.making).try_acquire_owned() else { return };
        let (store, strikes) = (Arc::clone(&self.store), Arc::clone(&self.strikes));
        let (launcher, plan, drafts) = (launcher.clone(), plan.clone(), self.drafts.clone());
        let boots = self.boots.get().cloned();
        tokio::spawn(async move {
            let _permit = permit;
            let _place = match &boots {
                Some(boots) => Some(boots.begin().await),
                None => None,
            };
            let made = match make::make(&launcher, &plan, &drafts).await {
                Ok(draft) => draft.publish(&store, &key),
                Err(error) => Err(error),
            };
            match made {
                Ok(()) => tracing::info!(%key, "template kept"),
                Err(error) => {
                    tracing::warn!(%key, %error, "template could not be made; VMs of this kind boot cold");
                    strike(&strikes, &key);
                }
            }
        });
    }

    /// `None` for a VM that cannot be a copy: a disk is written to by one VM only.
    fn key(&self, launcher: &Launcher, plan: &VmPlan) -> Option<Key> {
        let args = plan.template_args.as_ref().filter(|_| plan.disk.is_none())?;
        let key = self.store.key(launcher.host, plan, args);
        key.inspect_err(|error| tracing::warn!(%error, "no template can be looked for")).ok()
    }

    fn is_out(&self, key: &Key) -> bool {
        let strikes = self.strikes.lock().unwrap_or_else(PoisonError::into_inner);
        strikes.get(key).is_some_and(|count| *count >= MAX_STRIKES)
    }
}

fn strike(strikes: &Mutex<HashMap<Key, u32>>, key: &Key) {
    let mut strikes = strikes.lock().unwrap_or_else(PoisonError::into_inner);
    if strikes.len() >= MAX_REMEMBERED {
        strikes.clear();
    }
    *strikes.entry(key.clone()).or_default() += 1;
}
