//! The half of `stoker dead` that is about messages.

use serde_json::json;
use stoker_schemas::event::{BodyEncoding, DeadLetterReason, LetterWork};

use crate::cli::CliError;
use crate::cli::command::show::{self, ShowArgs};
use crate::cli::describe::age;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::clock;
use crate::http::LetterAnswer;
use crate::readmodel::{LetterPage, LetterState, LetterSummary, WholeLetter};
use crate::view::short_id;

/// Letters asked for at a time where all are meant.
const PAGE: usize = 500;
/// Pages of one command: a bound, not a limit.
const MAX_PAGES: usize = 10_000;

const PATH: [&str; 2] = ["v1", "dead-letters"];

/// A page of open letters.
pub async fn page(limit: usize, settings: &Settings) -> Result<LetterPage, CliError> {
    settings.client.get(&PATH, &[("limit", limit.to_string())]).await
}

/// Prints a page, with what is worth knowing about the rest.
pub fn print(page: &LetterPage, printer: &mut Printer) -> Result<(), CliError> {
    let now = (clock::system())();
    // A program wants whole ids and times.
    let short = printer.terminal();
    let id = |id: String| if short { short_id(&id).to_owned() } else { id };
    let row = |letter: &LetterSummary| {
        let died = if short { age(letter.died_at, now) } else { letter.died_at.to_string() };
        let job = letter.work.as_ref().map(|work| id(work.job.to_string())).unwrap_or_default();
        let why = format!("{}: {}", letter.reason.title(), letter.detail);
        let kind = "message".to_owned();
        vec![kind, id(letter.id.to_string()), letter.deaths.to_string(), letter.queue.clone(), job, died, why]
    };
    let header = ["KIND", "MESSAGE", "TIMES", "QUEUE", "JOB", "AGE", "WHY"];
    printer.table(&header, page.letters.iter().map(row).collect())?;
    let reasons: Vec<_> = page.open.iter().map(|(reason, n)| format!("{} {n}", reason.title())).collect();
    let all: u64 = page.open.values().sum();
    printer.note(&format!("{} shown of {all} messages: {}", page.letters.len(), reasons.join(", ")))
}

/// One letter; a job's id shows the job.
pub async fn show(id: String, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let letter: WholeLetter = match settings.client.get(&[PATH[0], PATH[1], &id], &[]).await {
        Err(CliError::Refused(problem)) if problem.status == 404 => {
            return show::run(ShowArgs::of(id), settings, printer).await;
        }
        answer => answer?,
    };
    if printer.json() {
        return printer.value(&letter);
    }
    let WholeLetter { summary, body } = &letter;
    printer.line(&format!("{}  message {}", summary.state.as_str(), summary.id))?;
    for (name, value) in facts(summary) {
        printer.line(&format!("  {name:<9} {value}"))?;
    }
    let what = match (summary.truncated, body.encoding) {
        (true, _) => format!("the beginning of {} bytes", summary.size),
        (false, BodyEncoding::Text) => format!("{} bytes", summary.size),
        (false, BodyEncoding::Base64) => format!("{} bytes, in base64", summary.size),
    };
    printer.line(&format!("  body      {what}"))?;
    printer.line("")?;
    printer.lines(&body.content)
}

fn facts(letter: &LetterSummary) -> Vec<(&'static str, String)> {
    let times = if letter.deaths > 1 { format!(", {} times", letter.deaths) } else { String::new() };
    let work = |work: &LetterWork| format!("{}, attempt {}", work.job, work.attempt);
    let word = letter.word.as_ref().map(|word| {
        let why = if word.reason.is_empty() { String::new() } else { format!(": {}", word.reason) };
        format!("{} by {} at {}{why}", word.state.as_str(), word.by, word.at)
    });
    let facts = [
        ("why", format!("{}: {}", letter.reason.title(), letter.detail)),
        ("do", letter.reason.remedy().to_owned()),
        ("died", format!("{}{times}", letter.died_at)),
        ("job", letter.work.as_ref().map(work).unwrap_or_default()),
        ("queue", letter.queue.clone()),
        ("exchange", letter.exchange.clone()),
        ("key", letter.routing_key.clone()),
        ("id", letter.message_id.clone().unwrap_or_default()),
        ("type", letter.content_type.clone().unwrap_or_default()),
        ("sha256", letter.sha256.clone()),
        ("said", word.unwrap_or_default()),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// Redrives what is a letter; what is none is given back.
pub async fn redrive(id: &str, settings: &Settings) -> Result<Option<LetterAnswer>, CliError> {
    match act(id, "redrive", "", settings).await {
        Ok(answer) => Ok(Some(answer)),
        Err(CliError::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

async fn act(id: &str, action: &str, reason: &str, settings: &Settings) -> Result<LetterAnswer, CliError> {
    settings.client.post(&[PATH[0], PATH[1], id, action], &json!({ "reason": reason })).await
}

/// Which letters to dismiss.
pub struct Which {
    /// These.
    pub ids: Vec<String>,
    /// Or all that are open, with this kind of reason, if any.
    pub reason: Option<DeadLetterReason>,
}

/// Dismisses letters.
pub async fn dismiss(which: Which, why: &str, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let mut answers = Vec::new();
    for id in which.ids.iter() {
        answers.push(act(id, "dismiss", why, settings).await?);
    }
    // What was dismissed is open no more: the first page is always the next one.
    for _ in 0..MAX_PAGES {
        if !which.ids.is_empty() {
            break;
        }
        let mut query = vec![("limit", PAGE.to_string())];
        query.extend(which.reason.map(|reason| ("reason", reason.as_str().to_owned())));
        let page: LetterPage = settings.client.get(&PATH, &query).await?;
        if page.letters.is_empty() {
            break;
        }
        for letter in &page.letters {
            answers.push(act(&letter.id.to_string(), "dismiss", why, settings).await?);
        }
    }
    if printer.json() {
        return printer.value(&answers);
    }
    for answer in &answers {
        printer.line(&answer.id.to_string())?;
    }
    let done = answers.iter().filter(|answer| answer.state == LetterState::Dismissed).count();
    printer.note(&format!("{done} dismissed"))
}
