//! What people do about dead letters: send one on its way again, or say that it needs nothing.

use stoker_schemas::command::Command;
use stoker_schemas::decide::decide;
use stoker_schemas::event::{JOB_LEVEL, MessageDismissed, MessageRedriven};
use stoker_schemas::letter::{Work, work};
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};
use stoker_schemas::{Event, EventData, JobState, topology};
use stoker_worker::ports::broker::{CONTENT_EVENT, Outgoing};

use super::context;
use super::settle::give_up;
use crate::http::{Api, Problem, control};
use crate::readmodel::{LetterState, WholeLetter};
use crate::submit::{Asker, publish_event};

/// Sends a letter on its way again. Kinds of the events that follow; none where that was done before.
pub async fn redrive(api: &Api, letter: &WholeLetter, reason: &str, asker: &Asker) -> Result<Vec<String>, Problem> {
    if letter.summary.state == LetterState::Redriven {
        return Ok(Vec::new());
    }
    let mut kinds = send_again(api, letter, asker).await?;
    let (seen, by, reason) = (letter.summary.died_at, asker.by.clone(), clip(reason, MAX_TEXT_BYTES));
    let redriven = MessageRedriven { seen, events: kinds.clone(), by, reason };
    kinds.push(tell(api, letter, EventData::MessageRedriven(redriven), asker).await?);
    Ok(kinds)
}

/// Says that a letter needs nothing. Kinds of the events that follow; none where it needed nothing before.
pub async fn dismiss(api: &Api, letter: &WholeLetter, reason: &str, asker: &Asker) -> Result<Vec<String>, Problem> {
    if letter.summary.state != LetterState::Open {
        return Ok(Vec::new());
    }
    let (seen, by, reason) = (letter.summary.died_at, asker.by.clone(), clip(reason, MAX_TEXT_BYTES));
    let dismissed = EventData::MessageDismissed(MessageDismissed { seen, by, reason });
    Ok(vec![tell(api, letter, dismissed, asker).await?])
}

async fn tell(api: &Api, letter: &WholeLetter, data: EventData, asker: &Asker) -> Result<String, Problem> {
    let event = Event {
        source: api.submitter().source().to_owned(),
        subject: letter.summary.id.to_string(),
        time: api.now(),
        epoch: JOB_LEVEL,
        traceparent: asker.traceparent.clone(),
        data,
    };
    publish_event(api.submitter().broker().as_ref(), &event).await?;
    control::shown(api, std::slice::from_ref(&event)).await;
    Ok(event.data.kind().to_owned())
}

async fn send_again(api: &Api, letter: &WholeLetter, asker: &Asker) -> Result<Vec<String>, Problem> {
    if letter.body.truncated {
        let detail = format!("only the beginning of its {} bytes is kept", letter.summary.size);
        return Err(Problem::conflict(detail, "have its publisher send it again, then dismiss it"));
    }
    let Some(body) = letter.body.bytes() else {
        return Err(Problem::conflict("its body is damaged", "dismiss it"));
    };
    match work(&body, api.now()) {
        Ok(work) => try_again(api, letter, work, asker).await,
        Err(why) => publish_again(api, letter, body, why).await,
    }
}

/// The job gets another attempt, with a message of its own: the old one may have doubles under way.
async fn try_again(api: &Api, letter: &WholeLetter, work: Work, asker: &Asker) -> Result<Vec<String>, Problem> {
    let known = api.model().job(work.job)?;
    let mut state = known.unwrap_or_else(|| JobState::new(work.job));
    state.apply(&work.event);
    let context = context(api.submitter());
    let mut commands = Vec::new();
    if !state.is_past(work.attempt) {
        // Nobody told yet that it waits in vain.
        commands.extend(give_up(work.job, Some(state.clone()), letter).map(|(_, command)| command));
    } else if !state.phase().is_closed() {
        let detail = format!("its job {} is {} without it", work.job, state.phase());
        return Err(Problem::conflict(detail, "dismiss it"));
    }
    commands.push(Command::Retry { by: asker.by.clone(), spec: None });
    let mut kinds = Vec::new();
    for command in commands {
        for (epoch, data) in decide(&state, command, context)? {
            state.apply_data(epoch, context.now, &data);
            let mut event = Event::about_job(work.job, epoch, api.submitter().source(), context.now, data);
            event.traceparent.clone_from(&asker.traceparent);
            publish_event(api.submitter().broker().as_ref(), &event).await?;
            kinds.push(event.data.kind().to_owned());
        }
    }
    Ok(kinds)
}

/// What is no work may be a command that no host could read then. All else would come back.
async fn publish_again(api: &Api, letter: &WholeLetter, body: Vec<u8>, why: String) -> Result<Vec<String>, Problem> {
    let event = Event::decode(&body, letter.summary.died_at).ok().filter(|event| !topology::is_history_only(event));
    let Some(event) = event else {
        let hint = "publish it as schemas/json says, or enqueue the job: stoker enqueue; then dismiss this one";
        return Err(Problem::conflict(format!("it still cannot be worked on: {why}"), hint));
    };
    let (routing_key, delay) = topology::route(&event);
    let message =
        Outgoing { routing_key, message_id: event.id(), content_type: CONTENT_EVENT, delay, body: body.into() };
    api.submitter().broker().publish(message).await?;
    Ok(vec![event.data.kind().to_owned()])
}
