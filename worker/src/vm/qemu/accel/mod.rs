//! How guest code is run: with KVM where that does what a boot needs, else translated (TCG).
//!
//! ```text
//! start of the worker -> a trial guest does a fixed amount of work, timed by the host's clock   trial.rs
//! first boot of a kernel with KVM -> its first byte on the console within a bound               kernels.rs
//!                                      came:  KVM runs this kernel
//!                                      not:   the VMM is ended, TCG boots the same VM; once the kernel
//!                                             speaks there, KVM is not used for it any more
//! ```
//!
//! That `/dev/kvm` opens, and even that a tiny guest runs on it, proves little: some hosts offer a KVM
//! that interprets guest code, a thousand times slower than the processor.

mod kernels;
mod note;
mod trial;
mod tsc;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    kernels::{FirstByte, Kernels, first_byte},
    note::Note,
    trial::{Trial, TrialError},
    tsc::host_tsc_khz,
};

/// Slower than this, KVM is not taken: TCG translates to several hundred MIPS on any processor of this
/// century, and a KVM that the processor supports runs thousands. One that interprets gives about 3.
pub const MIN_MIPS: u32 = 100;
/// An exit to the VMM that takes longer than this makes KVM useless: a boot needs some ten thousand of
/// them. 1-10 µs are usual, 30-60 µs within another VM.
pub const MAX_EXIT_US: u32 = 200;
/// A KVM that is at most this many times slower than needed may be a good one on a busy host: it is measured
/// again. One that interprets is further off.
const DOUBTFUL: u32 = 10;
/// Trials of a doubtful KVM; the best counts.
const MAX_TRIALS: usize = 3;
/// What a kernel is allowed until its first byte on the console: several times what Debian's needs.
const FIRST_BYTE_INSTRUCTIONS: u64 = 2_000_000_000;
/// And exits for that.
const FIRST_BYTE_EXITS: u64 = 20_000;
/// The bound on the first byte lies between these: a busy host may give a VMM nothing for seconds.
const FIRST_BYTE_BOUNDS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Translation in software: slow, works everywhere.
    Tcg,
}

impl Accel {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }
}

/// The setting `accel`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelMode {
    /// KVM where a trial and each kernel show that it works, else TCG.
    #[default]
    Auto,
    /// KVM, without a trial: a host without it does not start.
    Kvm,
    /// TCG.
    Tcg,
}

impl FromStr for AccelMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err("one of auto, kvm, tcg".to_owned()),
        }
    }
}

/// How fast a trial guest ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// Millions of instructions a second.
    pub mips: u32,
    /// Microseconds for an exit to the VMM; `None` when the trial did not come to that.
    pub exit_us: Option<u32>,
}

impl Speed {
    /// Whether a kernel can boot at this speed.
    pub fn is_enough(self) -> bool {
        self.mips >= MIN_MIPS && self.exit_us.is_some_and(|us| us <= MAX_EXIT_US)
    }

    /// Whether a busy host may have made it slow.
    fn is_doubtful(self) -> bool {
        let fast = self.mips >= MIN_MIPS / DOUBTFUL;
        !self.is_enough() && fast && self.exit_us.is_none_or(|us| us <= MAX_EXIT_US * DOUBTFUL)
    }

    /// Within which time a kernel has written its first byte to the console.
    pub fn first_byte_within(self) -> Duration {
        let work = FIRST_BYTE_INSTRUCTIONS / u64::from(self.mips.max(1));
        let exits = FIRST_BYTE_EXITS * u64::from(self.exit_us.unwrap_or(MAX_EXIT_US));
        let (least, most) = FIRST_BYTE_BOUNDS;
        Duration::from_micros(work + exits).clamp(least, most)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mips {
            0 => f.write_str("less than 1 MIPS")?,
            mips => write!(f, "{mips} MIPS")?,
        }
        self.exit_us.map_or(Ok(()), |us| write!(f, ", {us} µs for an exit"))
    }
}

/// Which accelerator a host uses, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelDecision {
    /// What to use.
    pub accel: Accel,
    /// Why, for people.
    pub reason: String,
    /// What the trial measured; `None` when there was no trial, or its guest did not run.
    pub speed: Option<Speed>,
    /// Holds until the host is restarted. Without, something was missing that may be there next time.
    pub lasting: bool,
}

impl AccelDecision {
    /// As the operator set it.
    fn set(accel: Accel) -> Self {
        Self { accel, reason: "as set".to_owned(), speed: None, lasting: false }
    }

    fn missing(reason: String) -> Self {
        Self { accel: Accel::Tcg, reason, speed: None, lasting: false }
    }

    /// The verdict on a trial.
    pub fn judge(outcome: Result<Speed, TrialError>) -> Self {
        match outcome {
            Ok(speed) if speed.is_enough() => {
                let reason = format!("a trial guest ran at {speed}");
                Self { accel: Accel::Kvm, reason, speed: Some(speed), lasting: true }
            }
            Ok(speed) => {
                let needed = format!("{MIN_MIPS} MIPS and at most {MAX_EXIT_US} µs for an exit are needed");
                let reason = format!("KVM is too slow here: a trial guest ran at {speed}; {needed}");
                Self { accel: Accel::Tcg, reason, speed: Some(speed), lasting: true }
            }
            Err(error @ TrialError::NoGuest(_)) => Self::missing(error.to_string()),
            Err(error) => Self { lasting: true, ..Self::missing(format!("KVM does not work here: {error}")) },
        }
    }
}

impl fmt::Display for AccelDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.accel.as_str(), self.reason)
    }
}

/// Runs the trial, and again while its outcome may be the host's load.
pub async fn measure(trial: &Trial<'_>) -> Result<Speed, TrialError> {
    let mut speed = trial.run().await?;
    for _ in 1..MAX_TRIALS {
        if !speed.is_doubtful() {
            break;
        }
        let again = trial.run().await?;
        if again.is_enough() || again.mips > speed.mips {
            speed = again;
        }
    }
    Ok(speed)
}

/// Chooses the accelerator of a host, with a trial where the note of an earlier one is not at hand.
/// The error is for a host that was set to use KVM and has none.
pub async fn choose(mode: AccelMode, trial: &Trial<'_>, note: Option<&Note>) -> Result<AccelDecision, String> {
    match mode {
        AccelMode::Tcg => Ok(AccelDecision::set(Accel::Tcg)),
        AccelMode::Kvm => match kvm_opens(Path::new(KVM)) {
            Ok(()) => Ok(AccelDecision::set(Accel::Kvm)),
            Err(why) => Err(why),
        },
        AccelMode::Auto => {
            if let Some(decision) = note.and_then(Note::decision) {
                return Ok(decision);
            }
            let decision = match AccelDecision::judge(measure(trial).await) {
                // The device says best what is missing, and it may be there at the next start.
                decision if decision.accel == Accel::Tcg && decision.speed.is_none() => match kvm_opens(Path::new(KVM))
                {
                    Ok(()) => decision,
                    Err(why) => AccelDecision::missing(why),
                },
                decision => decision,
            };
            if let Some(note) = note {
                note.decided(&decision);
            }
            Ok(decision)
        }
    }
}

/// What a running QEMU was started with.
pub fn of_process(pid: u32) -> Option<Accel> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).skip_while(|argument| *argument != b"-accel");
    let accel = arguments.nth(1)?;
    [(b"kvm".as_slice(), Accel::Kvm), (b"tcg".as_slice(), Accel::Tcg)]
        .into_iter()
        .find_map(|(name, found)| accel.starts_with(name).then_some(found))
}

const KVM: &str = "/dev/kvm";

fn kvm_opens(device: &Path) -> Result<(), String> {
    let Err(error) = std::fs::File::options().read(true).write(true).open(device) else { return Ok(()) };
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "; a member of its group (kvm) may use it",
        io::ErrorKind::NotFound => "; enable virtualisation and load kvm_intel or kvm_amd to have it",
        _ => "",
    };
    Err(format!("{}: {error}{remedy}", device.display()))
}

/// The trial of these settings: QEMU's program, and the guest that comes with the image `probe`.
pub fn probe_guest(images: &Path) -> PathBuf {
    images.join("probe").join("probe.elf")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(mips: u32, exit_us: Option<u32>) -> AccelDecision {
        AccelDecision::judge(Ok(Speed { mips, exit_us }))
    }

    #[test]
    fn a_kvm_that_interprets_or_crawls_is_not_taken() {
        assert_eq!(judged(2_400, Some(4)).accel, Accel::Kvm);
        assert_eq!(judged(MIN_MIPS, Some(MAX_EXIT_US)).accel, Accel::Kvm);
        for (mips, exit_us) in [(3, None), (0, None), (MIN_MIPS - 1, Some(4)), (2_400, Some(MAX_EXIT_US + 1))] {
            let decision = judged(mips, exit_us);
            assert_eq!(decision.accel, Accel::Tcg, "{decision}");
            assert!(decision.lasting && decision.speed.is_some());
        }
        insta::assert_snapshot!(
            judged(3, None),
            @"TCG (KVM is too slow here: a trial guest ran at 3 MIPS; 100 MIPS and at most 200 µs for an exit are needed)"
        );
        insta::assert_snapshot!(judged(2_400, Some(4)), @"KVM (a trial guest ran at 2400 MIPS, 4 µs for an exit)");
    }

    #[test]
    fn a_host_that_may_only_be_busy_is_measured_again() {
        let doubtful = |mips, exit_us| Speed { mips, exit_us }.is_doubtful();
        for busy in [(40, None), (90, Some(4)), (2_400, Some(300)), (60, Some(900))] {
            assert!(doubtful(busy.0, busy.1), "{busy:?}");
        }
        for clear in [(2_400, Some(4)), (3, None), (0, None), (9, Some(4)), (2_400, Some(2_500))] {
            assert!(!doubtful(clear.0, clear.1), "{clear:?}");
        }
    }

    #[test]
    fn the_bound_on_the_first_byte_follows_the_trial() {
        let within = |mips, exit_us| Speed { mips, exit_us: Some(exit_us) }.first_byte_within();
        assert_eq!(within(3_000, 4), Duration::from_secs(5), "never less");
        assert_eq!(within(200, 10), Duration::from_millis(10_200));
        assert_eq!(within(MIN_MIPS, MAX_EXIT_US), Duration::from_secs(24), "the slowest that is taken");
        assert_eq!(within(0, 1_000_000), Duration::from_secs(30), "never more");
    }

    #[test]
    fn a_missing_device_is_named_with_its_remedy() {
        let why = kvm_opens(Path::new("/no/such/kvm")).unwrap_err();
        assert!(why.contains("/no/such/kvm: No such file") && why.contains("kvm_amd"), "{why}");
    }
}
