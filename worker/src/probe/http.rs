//! [`HttpProber`]: GET, once or until the answer is as asked.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};
use tokio::time::{Instant, sleep};

use super::{
    outcome::{self, Identity},
    pace::{PATIENCE, Pace},
};
use crate::{
    net::{Namespace, bridge::NeighbourLookup},
    ports::{
        net::NetError,
        probe::{Answer, ProbeLog, ProbeOutcome, ProbeTarget, Prober},
    },
};

/// How long a connected agent may take for its whole answer: a health check that takes longer is
/// no health.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Read of a body, at most; a guest may send without end.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Asks agents from inside a namespace.
pub struct HttpProber {
    namespace: Namespace,
    /// One per patience: reqwest sets it per client.
    clients: [reqwest::Client; PATIENCE.len()],
    neighbours: Option<NeighbourLookup>,
}

impl HttpProber {
    /// `neighbours` tells VMs apart whose answers carry no id; not needed on loopback, where each
    /// VM has its own port.
    pub fn new(namespace: Namespace, neighbours: Option<NeighbourLookup>) -> Result<Self, NetError> {
        let build = |patience: Duration| {
            reqwest::Client::builder()
                .user_agent("stoker")
                .connect_timeout(patience)
                // The answer must be this VM's own: no proxy, no redirect, and no connection kept
                // from whoever had the address before.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(0)
                .build()
        };
        let built: Result<Vec<_>, _> = PATIENCE.into_iter().map(build).collect();
        let failed = |cause: String| NetError::System { what: "build an HTTP client".to_owned(), cause };
        let clients = built.map_err(|e| failed(e.to_string()))?;
        // As many as there are patiences, one line above.
        let clients = clients.try_into().map_err(|_| failed("wrong number of clients".to_owned()))?;
        Ok(Self { namespace, clients, neighbours })
    }

    async fn ask(&self, target: &ProbeTarget, patience: usize) -> ProbeOutcome {
        // `patience` comes from `Pace` or is a constant below; both stay within the array.
        let client = self.clients[patience.min(PATIENCE.len() - 1)].clone();
        let (target, neighbours) = (target.clone(), self.neighbours.clone());
        // Large futures of the HTTP stack live in the task, not in every caller.
        self.namespace.within(async move { ask(&client, &target, PATIENCE[patience], neighbours).await }).await
    }
}

#[async_trait]
impl Prober for HttpProber {
    async fn until_ready(&self, target: &ProbeTarget, seen: &ProbeLog) -> Answer {
        let mut pace = Pace::start();
        loop {
            let patience = pace.patience();
            let asking = seen.asking(PATIENCE[patience]);
            let outcome = self.ask(target, patience).await;
            asking.note(outcome.clone(), pace.elapsed());
            if let ProbeOutcome::Ready(answer) = outcome {
                return answer;
            }
            sleep(pace.next(outcome == ProbeOutcome::ConnectTimeout)).await;
        }
    }

    async fn once(&self, target: &ProbeTarget) -> ProbeOutcome {
        self.ask(target, PATIENCE.len() - 1).await
    }

    async fn ask_to_end(&self, agent: SocketAddr, path: &str) -> Result<(), String> {
        let client = self.clients[PATIENCE.len() - 1].clone();
        let request = client.post(format!("http://{agent}{path}")).timeout(ANSWER_WITHIN);
        let answered = self.namespace.within(async move { request.send().await }).await;
        match answered {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("HTTP {}", answer.status())),
            Err(error) => Err(error.to_string()),
        }
    }
}

async fn ask(
    client: &reqwest::Client,
    target: &ProbeTarget,
    patience: Duration,
    neighbours: Option<NeighbourLookup>,
) -> ProbeOutcome {
    let url = format!("http://{}{}", target.agent, target.readiness.path);
    let sent = Instant::now();
    let request = client.get(url).header("connection", "close").timeout(patience + ANSWER_WITHIN);
    let read = async {
        let response = request.send().await?;
        Ok((response.status().as_u16(), read_body(response).await?))
    };
    let (status, body) = match read.await {
        Ok(read) => read,
        Err(error) => return outcome::of_error(&error),
    };
    let vm_id = outcome::vm_id(&body);
    let text = String::from_utf8_lossy(&body);
    let identity = match (&vm_id, target.agent.ip(), neighbours) {
        (Some(name), ..) => Identity::Named(name.clone()),
        (None, ip, _) if ip.is_loopback() => Identity::Private,
        (None, IpAddr::V4(address), Some(lookup)) => lookup(address).await.map_or(Identity::Unknown, Identity::At),
        _ => Identity::Unknown,
    };
    let answer = Answer { status, body: clip(&text, MAX_TEXT_BYTES), latency: sent.elapsed(), vm_id };
    outcome::of_answer(target, answer, &text, &identity)
}

/// The body up to the bound; what follows is not read.
async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = MAX_BODY_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            break;
        }
    }
    Ok(body)
}
