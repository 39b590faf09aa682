//! `stoker doctor`: does everything work, and if not, what to do. Checks what the server can see;
//! `scripts/dev doctor` checks the machine.

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::http::{BrokerHealth, Health, HistoryHealth};
use crate::readmodel::{HostStatus, HostView, Undecodable};

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    status: Status,
    check: &'static str,
    found: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    hint: &'static str,
}

pub async fn run(settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let health: Health = settings.client.get_any(&["health"]).await?;
    let hosts: Vec<HostView> = settings.client.get(&["v1", "hosts"], &[]).await?;
    let undecodable: Vec<Undecodable> = settings.client.get(&["v1", "undecodable"], &[]).await?;
    let checks =
        [version(&health), broker(&health.broker), stream(&health.history), hosts_up(&hosts), decodable(&undecodable)];
    if printer.json() {
        printer.value(&checks)?;
    } else {
        print(&checks, printer)?;
    }
    match checks.iter().find(|c| c.status == Status::Fail) {
        None => Ok(()),
        Some(failed) => Err(CliError::system(format!("{} failed", failed.check), &failed.found, failed.hint)),
    }
}

fn print(checks: &[Check], printer: &mut Printer) -> Result<(), CliError> {
    let word = |status| match status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "fail",
    };
    let row = |c: &Check| vec![word(c.status).to_owned(), c.check.to_owned(), c.found.clone(), c.hint.to_owned()];
    printer.table(&["STATUS", "CHECK", "FOUND", "HINT"], checks.iter().map(row).collect())
}

fn version(health: &Health) -> Check {
    let ours = env!("CARGO_PKG_VERSION");
    let same = health.version == ours;
    Check {
        status: if same { Status::Ok } else { Status::Warn },
        check: "server",
        found: format!("version {}", health.version),
        hint: if same { "" } else { "this command line is of another version" },
    }
}

fn broker(broker: &BrokerHealth) -> Check {
    let (status, found, hint) = match broker {
        BrokerHealth::Connected => (Status::Ok, "connected".to_owned(), ""),
        BrokerHealth::Blocked(why) => (Status::Fail, format!("blocked: {why}"), "free memory or disk on the broker"),
        BrokerHealth::Down(why) => (Status::Fail, format!("down: {why}"), "check its address and that it runs"),
    };
    Check { status, check: "broker", found, hint }
}

fn stream(history: &HistoryHealth) -> Check {
    let (status, found, hint) = match history {
        HistoryHealth::Available => (Status::Ok, "takes events".to_owned(), ""),
        HistoryHealth::Away(why) => {
            (Status::Warn, format!("away: {why}"), "work goes on, pages lag; the server's log says how to repair it")
        }
    };
    Check { status, check: "history stream", found, hint }
}

fn hosts_up(hosts: &[HostView]) -> Check {
    let up = hosts.iter().filter(|h| h.status == HostStatus::Up).count();
    Check {
        status: if up > 0 { Status::Ok } else { Status::Warn },
        check: "hosts",
        found: format!("{up} of {} take jobs", hosts.len()),
        hint: if up > 0 { "" } else { "jobs wait until a worker runs: stoker up, or stoker-worker" },
    }
}

fn decodable(undecodable: &[Undecodable]) -> Check {
    Check {
        status: if undecodable.is_empty() { Status::Ok } else { Status::Warn },
        check: "history",
        found: match undecodable.first() {
            None => "all entries are understood".to_owned(),
            Some(last) => format!("{} entries are not understood, the last: {}", undecodable.len(), last.reason),
        },
        hint: if undecodable.is_empty() { "" } else { "see GET /v1/undecodable" },
    }
}
