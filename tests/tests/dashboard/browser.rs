//! A real Chromium, driven through WebDriver; gone with the test however it ends.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator, error::CmdError, wd::WebDriverCompatibleCommand};
use http::Method;
use serde_json::{Value, json};
use stoker_tests::skipped;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::axe::{self, Axe};

/// Longest wait for something to show.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks: a page changes when its server says so, and the browser does not tell us.
const LOOK: Duration = Duration::from_millis(50);

pub struct Browser {
    pub page: Client,
    base: String,
    shots: PathBuf,
    _driver: Child,
    _profile: tempfile::TempDir,
}

/// Chromium's own protocol, for what WebDriver cannot say.
#[derive(Debug)]
struct Cdp(&'static str, Value);

impl WebDriverCompatibleCommand for Cdp {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "cmd": self.0, "params": self.1 }).to_string()))
    }
}

/// What pages wrote to the console, and what the browser itself had to complain about.
#[derive(Debug)]
struct Log;

impl WebDriverCompatibleCommand for Log {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

impl Browser {
    /// `None`, with a line that says why, where there is no browser.
    pub async fn open(test: &str, base: &str) -> Option<Self> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut driver = match command.spawn() {
            Ok(driver) => driver,
            Err(error) => {
                skipped(test, &format!("chromedriver: {error} (scripts/dev deps browser installs it)"));
                return None;
            }
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().expect("chromedriver ended");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let profile = tempfile::tempdir().unwrap();
        let options = json!({
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     format!("--user-data-dir={}", profile.path().display())],
        });
        let capabilities = [("goog:chromeOptions", options), ("goog:loggingPrefs", json!({"browser": "ALL"}))];
        let capabilities = capabilities.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let connected = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await;
        let page = connected.expect("a session with Chromium");
        let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
        std::fs::create_dir_all(&shots).unwrap();
        Some(Self { page, base: base.to_owned(), shots, _driver: driver, _profile: profile })
    }

    pub async fn go(&self, path: &str) {
        self.page.goto(&format!("{}{path}", self.base)).await.unwrap();
    }

    /// Waits until the page's text has all of these.
    pub async fn sees(&self, what: &[&str]) {
        let mut text = String::new();
        let seen = tokio::time::timeout(PATIENCE, async {
            loop {
                text = self.text().await;
                if what.iter().all(|wanted| text.contains(wanted)) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        assert!(seen.await.is_ok(), "{what:?} did not show; the page says:\n{text}");
    }

    /// Waits until the browser shows this page.
    pub async fn is_at(&self, path: &str) {
        let arrived = tokio::time::timeout(PATIENCE, async {
            while self.page.current_url().await.unwrap().path() != path {
                tokio::time::sleep(LOOK).await;
            }
        });
        let url = arrived.await.is_err().then_some(self.page.current_url().await);
        assert!(url.is_none(), "not at {path} but at {url:?}");
    }

    pub async fn text(&self) -> String {
        // A page that is being replaced has no text for a moment.
        let read = self.page.execute("return document.querySelector('main')?.innerText ?? ''", Vec::new()).await;
        read.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }

    pub async fn click(&self, css: &str) {
        self.try_click(Locator::Css(css), css).await;
    }

    /// Clicks the button or link with this text.
    pub async fn press(&self, text: &str) {
        let path = format!("//main//*[self::a or self::button][normalize-space()=\"{text}\"]");
        self.try_click(Locator::XPath(&path), text).await;
    }

    /// A live page may replace what was found before it is clicked: then the new one is meant.
    async fn try_click(&self, what: Locator<'_>, name: &str) {
        let mut last = None;
        let clicked = tokio::time::timeout(PATIENCE, async {
            loop {
                let tried = async { self.page.find(what).await?.click().await }.await;
                match tried {
                    Ok(()) => return,
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        assert!(clicked.await.is_ok(), "{name:?} cannot be clicked: {last:?}; the page says:\n{}", self.text().await);
    }

    /// Replaces what stands in a field.
    pub async fn write(&self, css: &str, text: &str) {
        let field = self.page.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub async fn value(&self, css: &str) -> String {
        let field = self.page.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await.unwrap();
        field.prop("value").await.unwrap().unwrap_or_default()
    }

    pub async fn keys(&self, keys: &str) {
        self.page.find(Locator::Css("body")).await.unwrap().send_keys(keys).await.unwrap();
    }

    /// What the browser complained about since it was asked last: errors, and what a page's policy
    /// kept it from doing.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.page.issue_cmd(Log).await.unwrap();
        let bad = log.as_array().unwrap().iter().filter(|entry| entry["level"] != "INFO" && entry["level"] != "DEBUG");
        bad.map(|entry| entry["message"].to_string()).collect()
    }

    /// Pictures of a page: light, dark, and on a phone, where nothing may be wider than the screen.
    /// Each is looked at by axe, too, where it is there: what it found.
    pub async fn shoot(&self, name: &str, path: &str, axe: Option<&Axe>) -> Vec<String> {
        let mut found = Vec::new();
        for (look, dark, width, height) in
            [("light", false, 1280, 900), ("dark", true, 1280, 900), ("phone", false, 390, 844)]
        {
            let scheme = json!([{"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}]);
            self.cdp("Emulation.setEmulatedMedia", json!({ "features": scheme })).await.unwrap();
            let phone = width < 500;
            let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
            self.cdp("Emulation.setDeviceMetricsOverride", size).await.unwrap();
            self.go(path).await;
            let picture = self.page.screenshot().await.unwrap();
            std::fs::write(self.shots.join(format!("{name}-{look}.png")), picture).unwrap();
            let wide = self.page.execute("return document.documentElement.scrollWidth", Vec::new()).await.unwrap();
            assert!(wide.as_u64().unwrap() <= width, "{path} is {wide} wide on a screen of {width}");
            if look == "light" {
                axe::weigh(&self.page, name).await;
            }
            if let Some(axe) = axe {
                found.extend(axe.judge(&self.page, &format!("{name}, {look}")).await);
            }
        }
        self.cdp("Emulation.clearDeviceMetricsOverride", json!({})).await.unwrap();
        found
    }

    async fn cdp(&self, command: &'static str, parameters: Value) -> Result<Value, CmdError> {
        self.page.issue_cmd(Cdp(command, parameters)).await
    }

    pub async fn close(self) {
        self.page.close().await.unwrap();
    }
}
