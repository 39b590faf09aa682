//! What keeps people out of a page, found by axe-core in the browser itself; and what a page weighs.

use std::path::PathBuf;

use fantoccini::Client;
use serde_json::{Value, json};
use stoker_tests::setting;

/// A page with its style sheet and script, uncompressed: what an operator on a bad line waits for.
const MAX_PAGE_BYTES: u64 = 150_000;

/// Everything that can be opened is looked at, too. What axe calls minor or moderate is advice.
const RUN: &str = "
    const done = arguments[arguments.length - 1];
    document.querySelectorAll('details').forEach(one => { one.open = true; });
    axe.run(document, { resultTypes: ['violations'] }).then(found => done(found.violations
        .filter(one => one.impact === 'serious' || one.impact === 'critical')
        .map(one => one.id + ' (' + one.impact + '): ' + one.help + '\\n' +
            one.nodes.map(node => '  ' + node.target + ' ' + node.html + '\\n  ' + node.failureSummary).join('\\n'))));
";

const WEIGH: &str = "
    const loaded = ['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind));
    const paint = performance.getEntriesByType('paint').find(one => one.name === 'first-contentful-paint');
    return [loaded.reduce((sum, one) => sum + one.decodedBodySize, 0), paint ? Math.round(paint.startTime) : null];
";

/// axe-core's script.
pub struct Axe(String);

impl Axe {
    /// `None`, with a line that says why, where it was not fetched.
    pub fn open(test: &str) -> Option<Self> {
        let path: PathBuf = setting(test, "STOKER_TEST_AXE")?;
        Some(Self(std::fs::read_to_string(path).unwrap()))
    }

    /// What is wrong with the page that the browser shows.
    pub async fn judge(&self, page: &Client, what: &str) -> Vec<String> {
        page.execute(&self.0, Vec::new()).await.unwrap();
        let found = page.execute_async(RUN, Vec::new()).await.unwrap();
        found.as_array().unwrap().iter().filter_map(Value::as_str).map(|one| format!("{what}: {one}")).collect()
    }

    /// Which axe it is.
    pub async fn version(&self, page: &Client) -> String {
        page.execute(&self.0, Vec::new()).await.unwrap();
        page.execute("return axe.version", Vec::new()).await.unwrap().to_string()
    }
}

/// Bytes of the page that the browser shows, and when it was painted first: told, not judged, since
/// machines differ.
pub async fn weigh(page: &Client, what: &str) {
    let weighed = page.execute(WEIGH, Vec::new()).await.unwrap();
    let bytes = weighed[0].as_u64().unwrap();
    let painted = if weighed[1] == json!(null) { "-".to_owned() } else { format!("{} ms", weighed[1]) };
    eprintln!("{what:>10}: {bytes:>7} bytes, first contentful paint {painted}");
    assert!(bytes > 0 && bytes < MAX_PAGE_BYTES, "{what} weighs {bytes} bytes");
}
