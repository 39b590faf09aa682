//! Every route of the API, each with what it takes and answers. The router and the document are
//! both made from this table, so that neither can have what the other has not.

use stoker_worker::ports::broker::CONTENT_BATCH;

use super::operation::{Endpoint, get, post, put};
use super::serve;
use super::shapes::{CloudEvent, StreamedEvent, SubmitRequest};
use crate::hooks::{self, Receipt};
use crate::http::console::{self, ConsoleQuery};
use crate::http::control::{self, ControlAnswer, ControlRequest, DrainAnswer, Wish};
use crate::http::dead::{self, DeadPage, DeadQuery, RedriveAnswer, RedriveRequest};
use crate::http::deliveries::{self, CallPage, DeliveryPage, ReplayRequest, RowsQuery, WholeDelivery};
use crate::http::export::DeadRow;
use crate::http::jobs::{self, Attempts, ReportQuery};
use crate::http::letters::{self, LetterAnswer, LettersQuery};
use crate::http::list::{self, ListQuery};
use crate::http::live::{self, EventsQuery, LogQuery};
use crate::http::many::{self, BulkCount, BulkRequest, BulkStarted, BulkView};
use crate::http::metrics;
use crate::http::ops::{self, Health, Ready};
use crate::http::pools::{self, LimitRequest, PoolAnswer};
use crate::http::snooze::SnoozeRequest;
use crate::http::stats::{self, Stats, StatsQuery};
use crate::http::wait::{SubmitQuery, Taken, Waited};
use crate::readmodel::{Counts, HostView, LetterPage, Page, PoolView, Undecodable, WholeLetter};
use crate::report::Report;
use crate::view::JobView;

const TEXT: &str = "text/plain; charset=utf-8";
const MARKDOWN: &str = "text/markdown; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4";
const NDJSON: &str = "application/x-ndjson";
const CSV: &str = "text/csv; charset=utf-8; header=present";
const STREAM: &str = "text/event-stream";

const BY: (&str, &str) =
    ("Stoker-By", "Who asks, for the events; a server with tokens names the token instead. At most 128 bytes.");
const TRACE: (&str, &str) = ("traceparent", "W3C trace context to go with the events; left out if it is malformed.");

/// The routes behind [`admit`](crate::http::access::admit).
pub fn endpoints() -> Vec<Endpoint> {
    [jobs(), wishes(), dead_jobs(), dead_letters(), hosts(), of_pools(), events(), webhooks(), server()]
        .into_iter()
        .flatten()
        .collect()
}

/// The one in front of it: a delivery proves itself with its signature.
pub fn deliveries() -> Endpoint {
    post("/hooks/{source}", "receiveDelivery", hooks::receive)
        .about("Takes a webhook delivery")
        .more("Its source's settings say how it is proven genuine and what becomes of it.")
        .any_body()
        .answers::<Receipt>(202, "A job was enqueued.")
        .answers::<Receipt>(200, "Taken; no new job follows.")
        .fails(&[401, 404, 408, 409, 413, 422, 429, 500, 503])
}

fn jobs() -> Vec<Endpoint> {
    vec![
        get("/v1/jobs", "listJobs", list::list)
            .about("Jobs, the newest first")
            .query::<ListQuery>()
            .answers::<Page>(200, "A page of jobs.")
            .fails(&[400]),
        post("/v1/jobs", "submitJobs", jobs::submit)
            .about("Enqueues one job or several")
            .more("Answers once the broker has confirmed them.")
            .header("Idempotency-Key", "The same key and job again is the same job. Jobs of a list add their position.")
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .query::<SubmitQuery>()
            .body::<SubmitRequest>()
            .answers::<Taken>(202, "Taken; with `wait`, some are still on their way.")
            .with("Location", "The job, where it is one.")
            .answers::<Waited>(200, "With `wait`: each is ready, dead, cancelled or stopped.")
            .fails(&[409, 422, 503]),
        get("/v1/jobs/{id}", "getJob", jobs::show)
            .about("One job, with all its attempts")
            .answers::<JobView>(200, "The job.")
            .fails(&[400, 404]),
        get("/v1/jobs/{id}/attempts", "getJobAttempts", jobs::attempts)
            .about("The tries of a job: where each ran, how long its stages took, why it failed")
            .answers::<Attempts>(200, "The tries.")
            .fails(&[400, 404]),
        get("/v1/jobs/{id}/events", "getJobEvents", jobs::events)
            .about("All events of a job, in order")
            .answers_as::<Vec<CloudEvent>>(200, "The events.", CONTENT_BATCH)
            .fails(&[400, 404]),
        get("/v1/jobs/{id}/console", "readConsole", console::console)
            .about("A piece of a VM's console, as the guest wrote it")
            .query::<ConsoleQuery>()
            .header("Range", "One range of bytes, where the query names no part.")
            .answers_as::<String>(200, "The bytes; with `follow`, as they come.", TEXT)
            .with("Stoker-From", "Position of the first byte.")
            .with("Stoker-Next", "Where to read on.")
            .answers_as::<String>(206, "The range, or its beginning.", TEXT)
            .with("Content-Range", "Which bytes, of how many.")
            .fails(&[400, 404, 416, 503]),
        get("/v1/jobs/{id}/report", "getReport", jobs::report)
            .about("A job's verification report")
            .query::<ReportQuery>()
            .answers_as::<String>(200, "The report.", MARKDOWN)
            .answers::<Report>(200, "The report.")
            .fails(&[400, 404]),
    ]
}

fn wishes() -> Vec<Endpoint> {
    let wish = |endpoint: Endpoint| {
        endpoint
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .answers::<ControlAnswer>(202, "It is asked for.")
            .answers::<ControlAnswer>(200, "It was granted before; nothing follows.")
            .fails(&[404, 409, 503])
    };
    vec![
        wish(post("/v1/jobs/{id}/retry", "retryJob", control::retry))
            .about("Another attempt, now; of a job that is queued, its message again")
            .optional_body::<ControlRequest>()
            .fails(&[422]),
        wish(post("/v1/jobs/{id}/cancel", "cancelJob", control::cancel))
            .about("No attempt any longer")
            .optional_body::<Wish>(),
        wish(post("/v1/jobs/{id}/stop", "stopJob", control::stop))
            .about("The VM of a ready job goes")
            .optional_body::<Wish>(),
        wish(post("/v1/jobs/{id}/snooze", "snoozeJob", control::snooze))
            .about("The attempt that waits starts later")
            .body::<SnoozeRequest>(),
        post("/v1/jobs/bulk", "wishForMany", many::order)
            .about("One wish for all jobs that match: first their number, then the deed")
            .more(
                "With `dry_run` the answer has the number of jobs and a token, good for ten minutes. The same wish \
                 with the token is carried out, if the number is still the same. It ends with the server.",
            )
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .body::<BulkRequest>()
            .answers::<BulkCount>(200, "How many they are.")
            .answers::<BulkStarted>(202, "It is being carried out.")
            .with("Location", "Where to see how far it is.")
            .fails(&[409, 503]),
        get("/v1/bulk/{id}", "getBulk", many::show)
            .about("How far a wish for many jobs is")
            .answers::<BulkView>(200, "How far.")
            .fails(&[400, 404]),
    ]
}

fn dead_jobs() -> Vec<Endpoint> {
    vec![
        get("/v1/dead", "listDead", dead::list)
            .about("Dead jobs, the newest first, with their causes")
            .more("As a page in JSON, or all that match as a file: NDJSON with their specs, or CSV.")
            .query::<DeadQuery>()
            .answers::<DeadPage>(200, "A page of dead jobs, or all of them.")
            .answers_as::<DeadRow>(200, "A page of dead jobs, or all of them.", NDJSON)
            .answers_as::<String>(200, "A page of dead jobs, or all of them.", CSV)
            .with("Content-Disposition", "Of a file: its name.")
            .fails(&[400]),
        post("/v1/dead/redrive", "redriveDead", dead::redrive)
            .about("Sends dead jobs round again")
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .body::<RedriveRequest>()
            .answers::<RedriveAnswer>(200, "What became of each.")
            .fails(&[503]),
    ]
}

fn dead_letters() -> Vec<Endpoint> {
    let wish = |endpoint: Endpoint| {
        endpoint
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .optional_body::<Wish>()
            .answers::<LetterAnswer>(202, "It is done.")
            .answers::<LetterAnswer>(200, "It was so before; nothing follows.")
            .fails(&[404, 409, 422, 503])
    };
    vec![
        get("/v1/dead-letters", "listDeadLetters", letters::list)
            .about("Messages that no worker could work on, or that the broker gave up; the latest first")
            .query::<LettersQuery>()
            .answers::<LetterPage>(200, "A page of dead letters.")
            .fails(&[400]),
        get("/v1/dead-letters/{id}", "getDeadLetter", letters::show)
            .about("One dead letter, with its body")
            .answers::<WholeLetter>(200, "The letter.")
            .fails(&[400, 404]),
        wish(post("/v1/dead-letters/{id}/redrive", "redriveDeadLetter", letters::redrive))
            .about("Sends a dead letter on its way again")
            .more("Its job gets another attempt. What still cannot be worked on is refused, with the reason."),
        wish(post("/v1/dead-letters/{id}/dismiss", "dismissDeadLetter", letters::dismiss))
            .about("Says that a dead letter needs nothing any more"),
    ]
}

fn hosts() -> Vec<Endpoint> {
    vec![
        get("/v1/hosts", "listHosts", ops::hosts)
            .about("Every host that was ever heard of")
            .answers::<Vec<HostView>>(200, "The hosts."),
        post("/v1/hosts/{host}/drain", "drainHost", control::drain)
            .about("Asks a host to take no more jobs")
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .optional_body::<Wish>()
            .answers::<DrainAnswer>(202, "It is asked for.")
            .fails(&[404, 503]),
    ]
}

fn of_pools() -> Vec<Endpoint> {
    let wish = |endpoint: Endpoint| {
        endpoint
            .header(BY.0, BY.1)
            .header(TRACE.0, TRACE.1)
            .answers::<PoolAnswer>(202, "Hosts are told.")
            .answers::<PoolAnswer>(200, "It was so before; nothing follows.")
            .fails(&[404, 503])
    };
    vec![
        get("/v1/pools", "listPools", pools::list)
            .about("Every pool that a host, a job or a setting names")
            .answers::<Vec<PoolView>>(200, "The pools."),
        wish(post("/v1/pools/{pool}/pause", "pausePool", pools::pause))
            .about("No new attempt of the pool starts; what boots or is up stays")
            .optional_body::<Wish>(),
        wish(post("/v1/pools/{pool}/resume", "resumePool", pools::resume))
            .about("Attempts of the pool start again")
            .optional_body::<Wish>(),
        wish(put("/v1/pools/{pool}/limit", "limitPool", pools::limit))
            .about("How many VMs of the pool each host may have at once")
            .body::<LimitRequest>(),
    ]
}

fn events() -> Vec<Endpoint> {
    vec![
        get("/v1/events", "followEvents", live::events)
            .about("Events as they come")
            .more("Server-sent events without end: `id` is the event's number, `data` the CloudEvent.")
            .query::<EventsQuery>()
            .header("Last-Event-ID", "Goes on after this number, as browsers do by themselves.")
            .answers_as::<StreamedEvent>(200, "The stream, event by event.", STREAM)
            .fails(&[400, 404, 503]),
        get("/v1/log", "readLog", live::log)
            .about("The event log, page by page")
            .query::<LogQuery>()
            .answers_as::<String>(200, "CloudEvents, one a line.", NDJSON)
            .with("Stoker-Next", "`from` of the next page.")
            .fails(&[400, 404]),
    ]
}

fn webhooks() -> Vec<Endpoint> {
    vec![
        get("/v1/hooks/deliveries", "listDeliveries", deliveries::list)
            .about("Webhook deliveries, the newest first")
            .query::<RowsQuery>()
            .answers::<DeliveryPage>(200, "A page of deliveries.")
            .fails(&[400, 404]),
        get("/v1/hooks/deliveries/{n}", "getDelivery", deliveries::show)
            .about("One delivery, with its body")
            .answers::<WholeDelivery>(200, "The delivery.")
            .fails(&[400, 404]),
        post("/v1/hooks/deliveries/{n}/replay", "replayDelivery", deliveries::replay)
            .about("Judges a delivery once more, by today's settings")
            .optional_body::<ReplayRequest>()
            .answers::<Receipt>(202, "A job was enqueued.")
            .answers::<Receipt>(200, "Taken; no new job follows.")
            .fails(&[404, 409, 422, 503]),
        get("/v1/callbacks", "listCallbacks", deliveries::callbacks)
            .about("Callbacks, the newest first")
            .query::<RowsQuery>()
            .answers::<CallPage>(200, "A page of callbacks.")
            .fails(&[400, 404]),
    ]
}

fn server() -> Vec<Endpoint> {
    vec![
        get("/health", "getHealth", ops::health)
            .about("Whether jobs are taken and started")
            .more("`work` says whether jobs that wait are started: `stalled` when hosts have room and nothing has started for --stalled-after-s.")
            .answers::<Health>(200, "They are.")
            .answers::<Health>(503, "The broker takes nothing now, or the work is stalled."),
        get("/ready", "getReady", ops::ready)
            .about("Whether requests may be sent here")
            .more("The history was read to its end once, and the broker is connected.")
            .answers::<Ready>(200, "They may.")
            .fails(&[503]),
        get("/v1/stats", "getStats", stats::stats)
            .about("What happened minute by minute, and how it stands")
            .query::<StatsQuery>()
            .answers::<Stats>(200, "The numbers.")
            .fails(&[400]),
        get("/metrics", "getMetrics", metrics::metrics).about("Numbers for Prometheus").answers_as::<String>(
            200,
            "Its text format.",
            PROMETHEUS,
        ),
        get("/v1/counts", "getCounts", ops::counts)
            .about("Jobs by phase and cause")
            .answers::<Counts>(200, "The numbers."),
        get("/v1/undecodable", "listUndecodable", ops::undecodable)
            .about("History entries that are not events we know")
            .answers::<Vec<Undecodable>>(200, "The latest of them."),
        get("/v1/openapi.json", "getOpenApi", serve)
            .about("This document")
            .answers::<serde_json::Map<String, serde_json::Value>>(200, "OpenAPI 3.1."),
    ]
}
