//! Answers of a broker that trying again does not change: its operator has to do something first. Each becomes one
//! sentence with what to do; at a worker's start it is the last one.

use lapin::{
    Error, ErrorKind,
    protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

use super::{config::AmqpConfig, fault::Fault};

/// What RabbitMQ says of a queue type that is switched off; its code is that of any internal error.
const FEATURE_FLAG: &str = "feature flag is disabled";
/// What RabbitMQ says of a user or password that it does not know; its code is that of any missing permission.
const LOGIN: &str = "Login was refused";

/// The answer and the way out, if it is such an answer.
pub(super) fn explain(fault: &Fault, config: &AmqpConfig) -> Option<String> {
    match fault {
        Fault::WrongQueue(_) => Some(fault.to_string()),
        Fault::Amqp(error) => {
            let answer = answer_of(error)?;
            let told = answer.get_message().as_str();
            remedy(answer.kind(), told, config).map(|remedy| format!("{}; {remedy}", told.trim_end_matches('.')))
        }
        _ => None,
    }
}

fn answer_of(error: &Error) -> Option<&AMQPError> {
    match error.kind() {
        ErrorKind::ProtocolError(answer) => Some(answer),
        _ => None,
    }
}

fn remedy(kind: &AMQPErrorKind, told: &str, config: &AmqpConfig) -> Option<String> {
    let (vhost, user, prefix) = (config.vhost(), config.user(), config.names.prefix());
    let own = format!("'^{prefix}\\.'");
    let permit = format!("rabbitmqctl set_permissions -p '{vhost}' '{user}' {own} {own} {own}");
    match kind {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if told.contains(LOGIN) => {
            Some(format!("check user and password in the broker's URL (the user is {user})"))
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
            Some(format!("Stoker declares, writes and reads what begins with {prefix}.: {permit}"))
        }
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Some(format!(
            "check the virtual host in the broker's URL; to make it: rabbitmqctl add_vhost '{vhost}'; to let the user \
             in: {permit}"
        )),
        AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR) if told.contains(FEATURE_FLAG) => {
            Some("Stoker needs quorum queues and streams: rabbitmqctl enable_feature_flag all".to_owned())
        }
        AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED) => {
            Some("Stoker needs quorum queues and streams: RabbitMQ 3.10 or later".to_owned())
        }
        _ => None,
    }
}
