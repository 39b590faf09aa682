//! Jobs from files and flags. A file holds one job, a list, or several YAML documents; flags are
//! laid over each of them. What is sent is still raw: the contract validates it, not this.

use std::path::Path;

use serde_json::{Map, Value};

use super::CliError;
use super::printer::Printer;

/// Largest file of jobs.
const MAX_FILE_BYTES: usize = 8 << 20;

/// Reads jobs from a file, or from standard input for `-`.
pub fn read(path: &Path, printer: &mut Printer) -> Result<Vec<Value>, CliError> {
    let shown = path.display();
    let too_large =
        || CliError::usage(format!("{shown} is larger than {MAX_FILE_BYTES} bytes"), "split it into several files");
    let text = if path.as_os_str() == "-" {
        printer.read_stdin(MAX_FILE_BYTES)?.ok_or_else(too_large)?
    } else {
        let unreadable = |e: std::io::Error| CliError::usage(format!("{shown} cannot be read: {e}"), "check --file");
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        if size > u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX) {
            return Err(too_large());
        }
        std::fs::read_to_string(path).map_err(unreadable)?
    };
    let jobs = parse(&text).map_err(|e| {
        CliError::usage(format!("{shown} is neither JSON nor YAML: {e}"), "a job is at least `image: golden`")
    })?;
    if jobs.is_empty() {
        return Err(CliError::usage(format!("{shown} holds no job"), "a job is at least `image: golden`"));
    }
    Ok(jobs)
}

pub(crate) fn parse(text: &str) -> Result<Vec<Value>, String> {
    // JSON first: its errors are clearer, and YAML refuses some JSON (tabs).
    let looks_like_json = text.trim_start().starts_with(['{', '[']);
    let documents = match serde_json::from_str::<Value>(text) {
        Ok(value) => vec![value],
        Err(json) => match serde_saphyr::from_multiple::<Value>(text) {
            Ok(documents) => documents,
            Err(_) if looks_like_json => return Err(json.to_string()),
            Err(yaml) => return Err(yaml.to_string()),
        },
    };
    let mut jobs = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Array(list) => jobs.extend(list),
            other => jobs.push(other),
        }
    }
    Ok(jobs)
}

/// Lays `over` over a job, field by field.
pub fn overlay(job: &mut Value, over: &Value) {
    match (job, over) {
        (Value::Object(job), Value::Object(over)) => {
            for (key, value) in over {
                overlay(job.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (job, over) => *job = over.clone(),
    }
}

/// An object in the making, by dotted paths.
#[derive(Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Sets a field, if there is a value for it.
    pub fn set(&mut self, path: &str, value: Option<impl Into<Value>>) {
        let Some(value) = value else { return };
        let nested = path.rsplit('.').fold(value.into(), |inner, key| {
            let mut map = Map::new();
            map.insert(key.to_owned(), inner);
            Value::Object(map)
        });
        let mut whole = Value::Object(std::mem::take(&mut self.0));
        overlay(&mut whole, &nested);
        if let Value::Object(map) = whole {
            self.0 = map;
        }
    }

    /// Sets a field to `key=value` pairs, if there are any.
    pub fn pairs(&mut self, path: &str, pairs: &[(String, String)]) {
        let map: Map<_, _> = pairs.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        self.set(path, (!map.is_empty()).then_some(map));
    }

    /// The object.
    pub fn finish(self) -> Value {
        Value::Object(self.0)
    }
}

/// `key=value`, for clap.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no '=': write key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `cause=number`, for clap.
pub fn count(text: &str) -> Result<(String, u64), String> {
    let (key, value) = pair(text)?;
    let number = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
    Ok((key, number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_a_list_and_several_documents_are_all_jobs() {
        assert_eq!(parse("image: golden@7").unwrap(), [json!({"image": "golden@7"})]);
        assert_eq!(parse("- image: a\n- image: b\n").unwrap().len(), 2);
        assert_eq!(parse("image: a\n---\nimage: b\n---\n- image: c\n- image: d\n").unwrap().len(), 4);
        assert_eq!(parse("[{\"image\":\t\"a\"}, {\"image\": \"b\"}]").unwrap().len(), 2);
        assert_eq!(parse("").unwrap().len(), 0);
        assert!(parse("{\"image\": ").unwrap_err().contains("EOF"), "JSON's own words for broken JSON");
    }

    #[test]
    fn flags_are_laid_over_a_file_field_by_field() {
        let mut job = json!({"image": "golden", "readiness": {"http": {"port": 1, "path": "/x"}}});
        let mut fields = Fields::default();
        fields.set("readiness.http.port", Some(9090));
        fields.set("readiness.deadline_ms", Some(5));
        fields.set("vcpus", None::<u64>);
        overlay(&mut job, &fields.finish());
        let expected = json!({
            "image": "golden", "readiness": {"http": {"port": 9090, "path": "/x"}, "deadline_ms": 5}
        });
        assert_eq!(job, expected);
    }
}
