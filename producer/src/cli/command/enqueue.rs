//! `stoker enqueue`: jobs from flags and files, to the server or straight to the broker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use stoker_worker::ports::broker::Broker;

use super::spec_flags::SpecFlags;
use super::wait;
use crate::cli::input;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::cli::{CliError, client::Client};
use crate::http::{Problem, Submitted, SubmittedJob};
use crate::submit::{Asker, MAX_JOBS_PER_REQUEST, Submitter, prepare};
use crate::{clock, compose};

/// Flags of `enqueue`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker enqueue golden@7 --wait\n  stoker enqueue --file jobs.yaml --label \
                        team=web\n  generate-jobs | stoker enqueue --file - --idempotency-key deploy-7")]
pub struct EnqueueArgs {
    /// Image to boot, such as golden@7
    #[arg(required_unless_present = "file")]
    image: Option<String>,
    /// Jobs from a JSON or YAML file (`-`: standard input): one, a list or several documents; flags
    /// are laid over each
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Same key, same job: repeat the command safely. Jobs of a file get the key and their position
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until each job is ready, dead, cancelled or stopped, and show its stages
    #[arg(long, short)]
    wait: bool,
    /// Longest wait, seconds
    #[arg(long, value_name = "S", default_value_t = 3600, requires = "wait")]
    timeout_s: u64,
    /// Publish straight to this RabbitMQ, without a server
    #[arg(long, value_name = "URL", conflicts_with = "wait")]
    broker: Option<String>,
    /// CA of an amqps:// broker (PEM), trusted besides the host's own
    #[arg(long, env = "STOKER_BROKER_CA", value_name = "FILE")]
    broker_ca: Option<PathBuf>,
    #[command(flatten)]
    spec: SpecFlags,
}

pub async fn run(args: EnqueueArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let mut jobs = match &args.file {
        Some(path) => input::read(path, printer)?,
        None => vec![Value::Object(serde_json::Map::new())],
    };
    let flags = args.spec.into_fields(args.image);
    let several = jobs.len() > 1;
    for (position, job) in jobs.iter_mut().enumerate() {
        if job.is_object() {
            input::overlay(job, &flags);
        }
        // Here and not in the request, so that the keys do not depend on how requests are cut.
        if let (Some(key), Some(fields)) = (&args.idempotency_key, job.as_object_mut()) {
            let key = if several { format!("{key}#{position}") } else { key.clone() };
            fields.entry("idempotency_key").or_insert(Value::from(key));
        }
    }
    if let Some(url) = &args.broker {
        let broker = compose::connect(url, args.broker_ca.clone()).await?;
        let submitted = straight_to(broker, jobs, &settings.by).await?;
        return print(&submitted, printer);
    }
    let submitted = to_server(&settings.client, jobs).await?;
    if args.wait {
        let within = Duration::from_secs(args.timeout_s);
        return wait::until_settled(&submitted, within, settings, printer).await;
    }
    print(&submitted, printer)
}

async fn to_server(client: &Client, jobs: Vec<Value>) -> Result<Submitted, CliError> {
    let mut all = Submitted { jobs: Vec::new(), from: u64::MAX };
    for chunk in jobs.chunks(MAX_JOBS_PER_REQUEST) {
        let sent = match chunk {
            [one] => client.post(&["v1", "jobs"], one).await,
            many => client.post(&["v1", "jobs"], &many).await,
        };
        let part: Submitted = sent.map_err(|e| with_earlier(e, &all))?;
        all.from = all.from.min(part.from);
        all.jobs.extend(part.jobs);
    }
    Ok(all)
}

/// A failure in a later request does not undo the earlier ones: say so.
fn with_earlier(error: CliError, before: &Submitted) -> CliError {
    match error {
        CliError::Refused(mut problem) => {
            problem.confirmed.splice(0..0, before.jobs.iter().map(|j| j.id));
            CliError::Refused(problem)
        }
        other => other,
    }
}

/// Validates here what the server would, and publishes; done when the broker has confirmed.
pub async fn straight_to(broker: Arc<dyn Broker>, jobs: Vec<Value>, by: &str) -> Result<Submitted, CliError> {
    let submitter = Submitter::new(broker.clone(), "cli", clock::system());
    let asker = Asker { by: by.to_owned(), traceparent: None };
    let refused = |problem: Problem| CliError::Refused(Box::new(problem));
    let mut all = Vec::with_capacity(jobs.len());
    let mut done = Ok(());
    for chunk in jobs.chunks(MAX_JOBS_PER_REQUEST) {
        let request = if let [one] = chunk { one.clone() } else { Value::Array(chunk.to_vec()) };
        let prepared = prepare(&request, None).map_err(|e| refused(e.into()))?;
        all.extend(prepared.iter().map(|p| SubmittedJob { id: p.id, duplicate: false }));
        done = submitter.submit_all(prepared, &asker).await.map_err(|e| refused(e.into()));
        if done.is_err() {
            break;
        }
    }
    broker.close().await;
    done.map(|()| Submitted { jobs: all, from: 0 })
}

fn print(submitted: &Submitted, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.value(&submitted.jobs);
    }
    for job in &submitted.jobs {
        printer.line(&job.id.to_string())?;
        if job.duplicate {
            printer.note(&format!("{} was enqueued before, with the same key", job.id))?;
        }
    }
    Ok(())
}
