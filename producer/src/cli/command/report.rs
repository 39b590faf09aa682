//! `stoker report`: the verification report of a job.

use clap::Args;

use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;

/// Flags of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Id of the job, or the beginning of it
    job: String,
}

pub async fn run(args: ReportArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let path = ["v1", "jobs", &args.job, "report"];
    if printer.json() {
        let report: serde_json::Value = settings.client.get(&path, &[("format", "json".to_owned())]).await?;
        return printer.value(&report);
    }
    let markdown = settings.client.text(&path, &[("format", "md".to_owned())]).await?;
    printer.lines(&markdown)
}
