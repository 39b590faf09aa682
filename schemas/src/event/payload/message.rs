//! About a message that no worker could work on: a dead letter.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::JobId;
use crate::time::Time;

payload! {
    /// Payload of `message.dead-lettered`: a message that no worker could work on, or that the broker
    /// gave up. The subject follows from queue, message id and body; each death of it is an event.
    struct MessageDeadLettered {
        /// Kind of reason.
        reason: DeadLetterReason,
        /// The reason in words.
        detail: String,
        /// When it died.
        died_at: Time,
        /// Queue that it waited in; empty where that is not known.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        queue: String,
        /// Exchange that it was published to; empty for the default one, or where that is not known.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        exchange: String,
        /// Routing key that it was published with.
        routing_key: String,
        /// How often it died there of that reason, by the broker's count.
        count: u64,
        /// The message's own id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message_id: Option<String>,
        /// Media type, as its publisher said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content_type: Option<String>,
        /// Length of the whole body, bytes.
        size: u64,
        /// The body, or its beginning.
        body: LetterBody,
        /// The work that it asks for, where it can be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work: Option<LetterWork>,
    }
}
payload! {
    /// Payload of `message.redriven`: a dead letter was sent on its way again.
    struct MessageRedriven {
        /// The latest death that the asker had seen: a later one opens the letter again.
        seen: Time,
        /// Kinds of the events that were published for it.
        events: Vec<String>,
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
payload! {
    /// Payload of `message.dismissed`: a dead letter needs nothing any more.
    struct MessageDismissed {
        /// The latest death that the asker had seen: a later one opens the letter again.
        seen: Time,
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
payload! {
    /// The body of a message, bounded so that an event can hold it.
    struct LetterBody {
        /// How the content is written.
        encoding: BodyEncoding,
        /// The bytes, in that encoding.
        content: String,
        /// Only the beginning is kept.
        truncated: bool,
        /// SHA-256 of the whole body, in hexadecimal.
        sha256: String,
    }
}
payload! {
    /// The work that a message asks for.
    struct LetterWork {
        /// The job.
        job: JobId,
        /// Number of the attempt.
        attempt: u32,
        /// Kind of the event that it is.
        kind: String,
    }
}

/// Why a message became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// It is no event that Stoker knows, or none that asks for work.
    Unreadable,
    /// Larger than any event.
    TooLarge,
    /// Delivered more often than its queue allows.
    DeliveryLimit,
    /// It waited longer than its queue, or its publisher, allows.
    Expired,
    /// A consumer refused it.
    Rejected,
    /// Its queue was full.
    QueueFull,
    /// The broker did not say.
    Unknown,
}

impl DeadLetterReason {
    /// Each once.
    pub const ALL: [Self; 7] = [
        Self::Unreadable,
        Self::TooLarge,
        Self::DeliveryLimit,
        Self::Expired,
        Self::Rejected,
        Self::QueueFull,
        Self::Unknown,
    ];

    /// Its name, as in data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::DeliveryLimit => "delivery_limit",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::QueueFull => "queue_full",
            Self::Unknown => "unknown",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Unreadable => "cannot be read",
            Self::TooLarge => "too large",
            Self::DeliveryLimit => "delivered too often",
            Self::Expired => "expired in its queue",
            Self::Rejected => "rejected",
            Self::QueueFull => "its queue was full",
            Self::Unknown => "reason unknown",
        }
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Unreadable => {
                "find its publisher by queue, routing key and id, and have it publish what schemas/json says; dismiss this one"
            }
            Self::TooLarge => {
                "find its publisher, and have it put large data elsewhere and refer to it; dismiss this one"
            }
            Self::DeliveryLimit => {
                "workers ended, or lost their connection, with it again and again: look at their logs, then redrive it"
            }
            Self::Expired => "look for a policy that lets messages expire (rabbitmqctl list_policies), then redrive it",
            Self::Rejected => "look for a consumer of that queue that is not Stoker's, then redrive it",
            Self::QueueFull => "look for a policy that limits the queue, or add hosts, then redrive it",
            Self::Unknown => "look at its body, then redrive or dismiss it",
        }
    }
}

impl std::str::FromStr for DeadLetterReason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL.into_iter().find(|r| r.as_str() == text).ok_or_else(|| format!("one of {}", names()))
    }
}

/// How the content of a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BodyEncoding {
    /// As it is: UTF-8.
    Text,
    /// Base64 (RFC 4648, with padding).
    Base64,
}

impl LetterBody {
    /// The bytes that are kept; `None` when the content is not what its encoding says.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self.encoding {
            BodyEncoding::Text => Some(self.content.clone().into_bytes()),
            BodyEncoding::Base64 => STANDARD.decode(&self.content).ok(),
        }
    }
}
