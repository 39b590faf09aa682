//! `stoker list`: jobs, newest first.

use clap::{Args, ValueEnum};
use stoker_schemas::Time;

use crate::cli::CliError;
use crate::cli::describe::age;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::clock;
use crate::readmodel::{JobSummary, MAX_PAGE, Page};
use crate::view::{duration, short_id};

/// Flags of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only jobs in this phase
    #[arg(long, value_enum)]
    phase: Option<PhaseName>,
    #[command(flatten)]
    which: FilterFlags,
    /// Jobs to show
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Begin where the page before ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

/// Which jobs; shared with `dead`.
#[derive(Debug, Default, Args)]
pub struct FilterFlags {
    /// Only jobs of this image (`golden` finds `golden@7`)
    #[arg(long)]
    pub image: Option<String>,
    /// Only jobs of this pool
    #[arg(long)]
    pub pool: Option<String>,
    /// Only jobs with this label: k or k=v
    #[arg(long, value_name = "K[=V]")]
    pub label: Option<String>,
    /// Only jobs whose last failure has this cause, such as agent_not_listening
    #[arg(long)]
    pub cause: Option<String>,
    /// Only jobs on this host
    #[arg(long)]
    pub host: Option<String>,
    /// Only jobs with this text in id, image, host, labels, address or problem
    #[arg(long)]
    pub text: Option<String>,
}

/// The phases' names.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PhaseName {
    Queued,
    Booting,
    Ready,
    Failing,
    Retrying,
    Dead,
    Cancelled,
    Stopped,
}

impl FilterFlags {
    /// As query parameters.
    pub fn query(&self) -> Vec<(&'static str, String)> {
        let fields = [
            ("image", &self.image),
            ("pool", &self.pool),
            ("label", &self.label),
            ("cause", &self.cause),
            ("host", &self.host),
            ("text", &self.text),
        ];
        fields.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.query().is_empty()
    }
}

pub async fn run(args: ListArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let mut query = args.which.query();
    if let Some(name) = args.phase.and_then(|p| p.to_possible_value()) {
        query.push(("phase", name.get_name().to_owned()));
    }
    let page = fetch(&["v1", "jobs"], query, args.limit, args.cursor, settings).await?;
    if printer.json() {
        return printer.value(&page);
    }
    if page.jobs.is_empty() {
        return printer.note("no jobs; enqueue one with `stoker enqueue golden --wait`");
    }
    print(&page.jobs, printer)?;
    match &page.next {
        Some(cursor) => printer.note(&format!("more with --cursor {cursor}")),
        None => Ok(()),
    }
}

/// As many jobs as asked for, page by page.
async fn fetch(
    path: &[&str],
    query: Vec<(&'static str, String)>,
    limit: usize,
    mut cursor: Option<String>,
    settings: &Settings,
) -> Result<Page, CliError> {
    let mut all = Page::default();
    loop {
        let wanted = limit.saturating_sub(all.jobs.len()).min(MAX_PAGE);
        let mut query = query.clone();
        query.push(("limit", wanted.to_string()));
        query.extend(cursor.take().map(|c| ("cursor", c)));
        let page: Page = settings.client.get(path, &query).await?;
        all.jobs.extend(page.jobs);
        all.next = page.next;
        if all.jobs.len() >= limit || all.next.is_none() {
            return Ok(all);
        }
        cursor.clone_from(&all.next);
    }
}

/// Jobs as rows.
pub fn print(jobs: &[JobSummary], printer: &mut Printer) -> Result<(), CliError> {
    let terminal = printer.terminal();
    let now = (clock::system())();
    let rows = jobs.iter().map(|job| row(job, terminal, now)).collect();
    printer.table(&["PHASE", "JOB", "IMAGE", "HOST", "ATTEMPTS", "BOOT", "AGE", "AGENT OR PROBLEM"], rows)
}

fn row(job: &JobSummary, terminal: bool, now: Time) -> Vec<String> {
    let id = job.id.to_string();
    let news = job.cause.map(|c| c.title().to_owned()).or_else(|| job.agent.clone()).unwrap_or_default();
    vec![
        job.phase.to_string(),
        if terminal { short_id(&id).to_owned() } else { id },
        job.image.clone(),
        job.host.clone().unwrap_or_default(),
        job.attempts.to_string(),
        job.boot_ms.map(duration).unwrap_or_default(),
        if terminal { age(job.created, now) } else { job.created.to_string() },
        news,
    ]
}
