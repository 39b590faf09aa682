//! A control plane of its own, as `stoker serve` runs it, with its API, its pages and the command line.

use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use stoker_producer::cli::{self, Io};
use stoker_producer::console::NoConsoles;
use stoker_producer::control_plane::{ControlPlane, Front, Parts};
use stoker_producer::http::Access;
use stoker_producer::readmodel::ReadModel;
use stoker_producer::reconcile::Patience;
use stoker_producer::submit::Submitter;
use stoker_worker::ports::broker::Broker;
use tokio::sync::broadcast::error::RecvError;

use crate::DEADLINE;

/// One of them.
pub struct Control {
    /// Beginning of its addresses.
    pub base: String,
    /// Its rows.
    pub model: ReadModel,
    /// Publishes for it.
    pub submitter: Submitter,
    plane: ControlPlane,
    http: reqwest::Client,
    _data: Arc<tempfile::TempDir>,
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Long: a machine that is slow is no failure of these tests.
const STALLED_AFTER: Duration = Duration::from_secs(300);

impl Control {
    /// Starts one over a broker, with rows that are empty.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(broker: Arc<dyn Broker>) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), broker).await
    }

    /// Starts one over a broker, with the rows that are in this folder.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_in(data: Arc<tempfile::TempDir>, broker: Arc<dyn Broker>) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let front = Front {
            listen,
            access: Access::Open,
            hooks: None,
            patience: Patience::default(),
            stalled_after: STALLED_AFTER,
        };
        let listener = front.bind().await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (name, consoles) = ("test", Arc::new(NoConsoles));
        let parts = Parts { name, listener, front, data: data.path().to_owned(), broker, consoles };
        let plane = ControlPlane::start(parts).unwrap();
        let (model, submitter) = (plane.model.clone(), plane.submitter.clone());
        Self { base, model, submitter, plane, http: reqwest::Client::new(), _data: data }
    }

    /// Asks for something as text.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn text(&self, path: &str) -> String {
        self.http.get(format!("{}{path}", self.base)).send().await.unwrap().text().await.unwrap()
    }

    /// Asks for something as JSON.
    ///
    /// # Panics
    /// When the answer is none.
    pub async fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path).await).unwrap()
    }

    /// Asks for something to be done: status and answer.
    ///
    /// # Panics
    /// When the answer is no JSON.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.http.post(format!("{}{path}", self.base)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Waits until an answer is as wanted; asks again whenever the rows changed.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn until(&self, what: &str, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut news = self.model.changes();
        let seen = async {
            loop {
                let answer = self.get(path).await;
                if wanted(&answer) {
                    return answer;
                }
                assert!(!matches!(news.recv().await, Err(RecvError::Closed)), "the rows are closed");
            }
        };
        match tokio::time::timeout(DEADLINE, seen).await {
            Ok(answer) => answer,
            Err(_) => panic!("{what} did not happen; {path} says {:#}", self.get(path).await),
        }
    }

    /// Runs a command line against it: exit code, and what is on stdout.
    ///
    /// # Panics
    /// When its output is no text.
    pub async fn cli(&self, args: &[&str]) -> (u8, String) {
        let (stdout, stderr) = (Captured::default(), Captured::default());
        let io = Io {
            stdin: Box::new(Cursor::new(Vec::new())),
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr),
            terminal: false,
            colour: false,
        };
        let server = format!("--server={}", self.base);
        let args = ["stoker"].into_iter().chain(args.iter().copied()).chain([server.as_str()]);
        let code = cli::run(args.map(str::to_owned), io).await;
        let text = String::from_utf8(stdout.0.lock().unwrap().clone()).unwrap();
        (code, text)
    }

    /// Ends it in order.
    pub async fn end(self) {
        self.plane.end().await;
    }
}
