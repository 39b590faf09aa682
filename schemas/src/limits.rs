//! Every bound of the contract, by name. What arrives from outside is refused beyond these.

/// A job message (CloudEvent with its spec), bytes. RabbitMQ copes with more; a boot job has no
/// reason to, and sled wants small values.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;
/// Kernel arguments of one job, bytes. Linux' own command line limit on x86 is 2048.
pub const MAX_KERNEL_ARGS_BYTES: usize = 1_536;
/// Labels of one job or host.
pub const MAX_LABELS: usize = 32;
/// A label's key or value, bytes (Kubernetes uses 63; operators copy theirs).
pub const MAX_LABEL_BYTES: usize = 63;
/// systemd units a job may wait for.
pub const MAX_UNITS: usize = 32;
/// A unit's name as it stands on the console, bytes.
pub const MAX_UNIT_BYTES: usize = 128;
/// An idempotency key, bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 256;
/// A callback URL, bytes.
pub const MAX_URL_BYTES: usize = 2_048;
/// The text a health answer must contain, bytes.
pub const MAX_BODY_MATCH_BYTES: usize = 1_024;
/// vCPUs of one VM: Firecracker's own limit.
pub const MAX_VCPUS: u32 = 32;
/// Memory of one VM, MiB (1 TiB): a typing error, not a VM, lies beyond.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Memory of a VM when its job does not say, MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// Smallest memory, MiB: the probe guest runs in it.
pub const MIN_MEMORY_MIB: u32 = 16;
/// Writable disk of one VM, MiB (4 TiB).
pub const MAX_DISK_MIB: u32 = 4 << 20;
/// Attempts a retry policy may ask for.
pub const MAX_ATTEMPTS: u32 = 50;
/// The longest wait between attempts, ms (24 h).
pub const MAX_RETRY_DELAY_MS: u64 = 24 * 3_600_000;
/// The longest readiness deadline, ms (1 h).
pub const MAX_DEADLINE_MS: u64 = 3_600_000;
/// The longest time-to-live in the queue, s (30 days).
pub const MAX_TTL_S: u64 = 30 * 86_400;
/// The longest that an attempt can be snoozed, s (30 days).
pub const MAX_SNOOZE_S: u64 = 30 * 86_400;
/// Free text kept from outside (reasons, console lines as evidence), bytes.
pub const MAX_TEXT_BYTES: usize = 1_024;
/// Beginning kept of a dead letter's body, bytes: in base64 it still fits into an event.
pub const MAX_LETTER_BODY_BYTES: usize = 40 * 1024;
/// A name in a dead letter (queue, routing key, message id), bytes: AMQP's own bound.
pub const MAX_LETTER_NAME_BYTES: usize = 255;
/// Evidence lines of one diagnosis.
pub const MAX_EVIDENCE: usize = 16;

/// Cuts text to `max` bytes at a character boundary, marking the cut.
pub fn clip(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max.saturating_sub(3)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}…", &text[..end])
}
