//! From payload to job: the condition and the templates of a source. Templates are the operator's,
//! payloads are not: evaluation is bounded, and what comes out is validated like any other job.

use std::collections::BTreeMap;

use minijinja::{Environment, ErrorKind, Expression, UndefinedBehavior, context};
use serde_json::Value;
use stoker_schemas::limits::clip;
use stoker_schemas::spec::SpecErrors;

use super::reader::Reader;
use crate::submit::{Prepared, prepare};

/// Steps of one template: a loop over some hundred commits, not over a payload of megabytes.
const FUEL: u64 = 20_000;
/// Longest text that a template may make; no field of a job takes as much.
const MAX_RENDERED_BYTES: usize = 64 * 1024;
/// Longest template, bytes.
const MAX_TEMPLATE_BYTES: usize = 4 * 1024;
/// Opening brackets and braces of one template: minijinja follows each by calling itself, and in an unoptimised
/// build the 2 MiB stack of a thread that serves requests takes about a hundred nested calls of functions.
const MAX_BRACKETS: usize = 48;
/// Words and signs of one template. Each `.a`, `|abs`, `not` or `-` may be a level of what minijinja makes of it, and
/// that stack takes 1,400 of those; minijinja itself bounds some of them only.
const MAX_PARTS: usize = 400;
/// Bytes kept of an error's words.
const MAX_WORDS: usize = 300;
/// Depth of the tables of a job; a spec has two.
const MAX_DEPTH: u32 = 8;

/// Condition and templates of a source.
#[derive(Debug, Clone)]
pub struct Mapping {
    when: Option<String>,
    job: Value,
}

/// What a template sees.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The source's name.
    pub source: &'a str,
    /// The delivery's id.
    pub delivery: &'a str,
    /// What it is about, where a header says so.
    pub event: Option<&'a str>,
    /// Headers, except those with secrets.
    pub headers: &'a BTreeMap<String, String>,
}

/// What a payload asks for.
#[derive(Debug, Clone)]
pub enum Mapped {
    /// This job.
    Job(Box<Prepared>),
    /// Nothing, and why.
    Ignored(String),
}

/// Why a payload makes no job.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// The body cannot be read.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// A template failed.
    #[error("{field}: {message}")]
    Template {
        /// Which.
        field: String,
        /// Its words.
        message: String,
    },
    /// What came out is not a job.
    #[error("the mapping makes no valid job: {}", words(.0))]
    Spec(SpecErrors),
}

fn words(SpecErrors(errors): &SpecErrors) -> String {
    let words: Vec<_> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
    clip(&words.join("; "), MAX_WORDS)
}

impl Mapping {
    /// Reads `when` and `job` of a source; a template that cannot be parsed is found here.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let when = reader.text("when");
        if let Some(Err(error)) = when.as_deref().map(|when| compiled(&environment(true), when).map(drop)) {
            reader.wrong("when", &said(&error));
        }
        let Some(table) = reader.table("job") else {
            reader.wrong("job", "says what to boot: [source.job] with at least image");
            return None;
        };
        let job = literal(toml::Value::Table(table));
        let environment = environment(false);
        let mut errors = Vec::new();
        each_text(&job, "job", &mut |field, text| {
            let checked = match expression(text) {
                Some(inner) => compiled(&environment, inner).map(drop),
                None => bounded(text).and_then(|()| environment.template_from_str(text).map(drop)),
            };
            if let Err(error) = checked {
                errors.push((field.to_owned(), said(&error)));
            }
        });
        for (field, error) in errors {
            reader.wrong(&field, &error);
        }
        Some(Self { when, job })
    }

    /// What a delivery asks for. `key` becomes the job's idempotency key unless the mapping sets one.
    pub fn apply(&self, facts: Facts<'_>, body: &[u8], key: &str) -> Result<Mapped, MappingError> {
        let payload: Value = serde_json::from_slice(body).map_err(|e| MappingError::NotJson(e.to_string()))?;
        let event = facts.event.or_else(|| payload.get("type").and_then(Value::as_str));
        let seen = context! {
            payload => minijinja::Value::from_serialize(&payload),
            event => event,
            source => facts.source,
            delivery => facts.delivery,
            headers => facts.headers,
        };
        if let Some(when) = &self.when {
            let failed = |error: minijinja::Error| template_error("when", &error);
            let environment = environment(true);
            let value = compiled(&environment, when).and_then(|e| e.eval(&seen)).map_err(failed)?;
            if !value.is_true() {
                return Ok(Mapped::Ignored(format!("the condition is not met: {}", clip(when, MAX_WORDS))));
            }
        }
        let spec = render(&environment(false), &self.job, "job", &seen, 0)?;
        let mut prepared = prepare(&spec, Some(key)).map_err(MappingError::Spec)?;
        // A table makes one job.
        match prepared.pop() {
            Some(job) => Ok(Mapped::Job(Box::new(job))),
            None => Ok(Mapped::Ignored("the mapping makes no job".to_owned())),
        }
    }
}

/// A condition may ask for what is not there; a job may not be made of it.
fn environment(lenient: bool) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(if lenient { UndefinedBehavior::Chainable } else { UndefinedBehavior::Strict });
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment
}

fn bounded(text: &str) -> Result<(), minijinja::Error> {
    let brackets = text.bytes().filter(|byte| b"([{".contains(byte)).count();
    if text.len() <= MAX_TEMPLATE_BYTES && brackets <= MAX_BRACKETS && parts(text) <= MAX_PARTS {
        return Ok(());
    }
    let why = format!(
        "it has more than {MAX_TEMPLATE_BYTES} bytes, {MAX_PARTS} words and signs, or {MAX_BRACKETS} of ( [ and {{; \
         have the sender put together what it needs"
    );
    Err(minijinja::Error::new(ErrorKind::SyntaxError, why))
}

/// Words, and signs between them, wherever they stand.
fn parts(text: &str) -> usize {
    let of_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
    let mut in_word = false;
    let starts = text.bytes().filter(|byte| {
        let continues = std::mem::replace(&mut in_word, of_word(*byte)) && of_word(*byte);
        !continues && !byte.is_ascii_whitespace()
    });
    starts.count()
}

/// minijinja panics where an expression ends before its text does.
fn compiled<'e>(environment: &'e Environment<'_>, text: &'e str) -> Result<Expression<'e, 'e>, minijinja::Error> {
    bounded(text)?;
    if text.contains("}}") {
        let why = "two braces end an expression; put a space between them";
        return Err(minijinja::Error::new(ErrorKind::SyntaxError, why));
    }
    environment.compile_expression(text)
}

fn said(error: &minijinja::Error) -> String {
    let detail = match (error.kind(), error.detail()) {
        (_, Some(detail)) => format!(": {detail}"),
        (ErrorKind::UndefinedError, None) => ": it asks for something that the payload does not have".to_owned(),
        (_, None) => String::new(),
    };
    clip(&format!("{}{detail}", error.kind()), MAX_WORDS)
}

fn template_error(field: &str, error: &minijinja::Error) -> MappingError {
    let message = match error.kind() {
        ErrorKind::OutOfFuel => format!("takes more than {FUEL} steps"),
        _ => said(error),
    };
    MappingError::Template { field: field.to_owned(), message }
}

/// A text that is one expression keeps the type of what comes out: `"{{ payload.cpus }}"` is a number.
fn expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let is_one = !["{{", "}}", "{%"].iter().any(|mark| inner.contains(mark)) && !inner.starts_with('-');
    is_one.then(|| inner.trim())
}

fn literal(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(n) => n.into(),
        toml::Value::Float(n) => n.into(),
        toml::Value::Boolean(b) => b.into(),
        toml::Value::Datetime(at) => Value::String(at.to_string()),
        toml::Value::Array(list) => list.into_iter().map(literal).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(key, value)| (key, literal(value))).collect(),
    }
}

fn each_text(value: &Value, field: &str, look: &mut dyn FnMut(&str, &str)) {
    match value {
        Value::String(text) => look(field, text),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, item)| each_text(item, &format!("{field}[{i}]"), look));
        }
        Value::Object(map) => map.iter().for_each(|(key, item)| each_text(item, &format!("{field}.{key}"), look)),
        _ => {}
    }
}

fn render(
    environment: &Environment<'_>,
    value: &Value,
    field: &str,
    seen: &minijinja::Value,
    depth: u32,
) -> Result<Value, MappingError> {
    if depth > MAX_DEPTH {
        let message = format!("tables are nested more than {MAX_DEPTH} deep");
        return Err(MappingError::Template { field: field.to_owned(), message });
    }
    Ok(match value {
        Value::String(text) => render_text(environment, text, seen).map_err(|e| template_error(field, &e))?,
        Value::Array(list) => {
            let items = list.iter().enumerate();
            let items = items.map(|(i, item)| render(environment, item, &format!("{field}[{i}]"), seen, depth + 1));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let mut made = serde_json::Map::new();
            for (key, item) in map {
                let item = render(environment, item, &format!("{field}.{key}"), seen, depth + 1)?;
                // `default(none)` leaves a field out.
                if !item.is_null() {
                    made.insert(key.clone(), item);
                }
            }
            Value::Object(made)
        }
        other => other.clone(),
    })
}

fn render_text(environment: &Environment<'_>, text: &str, seen: &minijinja::Value) -> Result<Value, minijinja::Error> {
    let invalid = |message: String| minijinja::Error::new(ErrorKind::InvalidOperation, message);
    let value = match expression(text) {
        Some(inner) => {
            let value = compiled(environment, inner)?.eval(seen)?;
            if value.is_undefined() {
                return Err(minijinja::Error::new(ErrorKind::UndefinedError, format!("{inner} is not in the payload")));
            }
            serde_json::to_value(&value).map_err(|e| invalid(e.to_string()))?
        }
        None => Value::String(environment.render_str(text, seen)?),
    };
    let length = value.as_str().map_or(0, str::len);
    if length > MAX_RENDERED_BYTES {
        return Err(invalid(format!("makes a text of {length} bytes, at most {MAX_RENDERED_BYTES} are taken")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::hooks::HooksConfig;

    fn apply(settings: &str, payload: &Value) -> Result<Mapped, MappingError> {
        let text = format!("[[source]]\nname = \"a\"\nkind = \"bearer\"\nsecrets = [\"0123456789abcdef\"]\n{settings}");
        let config = HooksConfig::parse(&text, Path::new("."), &|_| None).unwrap();
        let headers = [("x-from".to_owned(), "ci".to_owned())].into();
        let facts = Facts { source: "a", delivery: "d-1", event: None, headers: &headers };
        config.sources["a"].mapping.apply(facts, payload.to_string().as_bytes(), "key")
    }

    fn job(settings: &str, payload: &Value) -> Prepared {
        match apply(settings, payload).unwrap() {
            Mapped::Job(job) => *job,
            Mapped::Ignored(why) => panic!("ignored: {why}"),
        }
    }

    #[test]
    fn values_keep_their_type_and_texts_are_put_together() {
        let settings = "[source.job]\nimage = \"{{ payload.image }}\"\nvcpus = \"{{ payload.n * 2 }}\"\nmemory_mib = 256\n\
                        ttl_s = \"{{ payload.missing | default(none) }}\"\n\
                        labels = { from = \"{{ headers['x-from'] }}-{{ delivery }}\" }";
        let made = job(settings, &json!({"image": "golden", "n": 2}));
        assert_eq!((made.spec.vcpus, made.spec.memory_mib), (4, 256));
        assert_eq!(made.spec.labels["from"], "ci-d-1");
        assert_eq!(made.spec.idempotency_key.as_deref(), Some("key"));
    }

    #[test]
    fn a_condition_that_ends_before_its_text_does_is_an_error_and_no_panic() {
        for when in ["payload.a }} = 1", "payload.a == 1 and }}", "}}"] {
            let text = format!(
                "[[source]]\nname = \"a\"\nkind = \"bearer\"\nsecrets = [\"0123456789abcdef\"]\nwhen = \"{when}\"\n\
                 [source.job]\nimage = \"golden\""
            );
            let error = HooksConfig::parse(&text, Path::new("."), &|_| None).unwrap_err().to_string();
            assert!(error.contains("when") && error.contains("braces"), "{error}");
        }
    }

    #[test]
    fn a_template_that_is_nested_too_deep_is_an_error_and_does_not_end_the_process() {
        let nested = [
            "{% for a in b %}".repeat(20_000),
            format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(20_000)),
            format!("{{{{ {}1 }}}}", "-".repeat(20_000)),
            // Short, and as deep as it is long.
            format!("{{{{ a{} }}}}", ".a".repeat(2_000)),
            format!("{{{{ {}1 }}}}", "-".repeat(4_000)),
        ];
        for text in nested {
            let text = format!(
                "[[source]]\nname = \"a\"\nkind = \"bearer\"\nsecrets = [\"0123456789abcdef\"]\n\
                 [source.job]\nimage = \"{text}\""
            );
            let error = HooksConfig::parse(&text, Path::new("."), &|_| None).unwrap_err().to_string();
            assert!(error.contains("job.image") && error.contains("more than"), "{error}");
        }
    }

    /// The largest template of each kind that is still looked at; three eighths of the stack are for what calls this.
    #[test]
    fn whatever_is_looked_at_fits_a_small_stack() {
        let kinds = [
            ("{{ a", ".a", "", " }}"),
            ("{{ 1", "|abs", "", " }}"),
            ("{{ ", "-", "", "1 }}"),
            ("{{ ", "not ", "", "1 }}"),
            ("{{ ", "1**", "", "1 }}"),
            ("{{ ", "1 if 1 else ", "", "1 }}"),
            ("{{ ", "range(", ")", "1 }}"),
            ("{{ ", "a(---- not not not b.b|abs, ", ")", "1 }}"),
            ("{{ ", "[-", "]", "1 }}"),
            ("{% if a %}", "{% elif a %}", "", "{% endif %}"),
            ("x", "{% for a in b %}", "{% endfor %}", ""),
        ];
        for (before, opened, closed, after) in kinds {
            let nested = |n: usize| format!("{before}{}{}{after}", opened.repeat(n), closed.repeat(n));
            let most = (1..=MAX_PARTS).rev().map(nested).find(|text| bounded(text).is_ok()).unwrap();
            let text = format!(
                "[[source]]\nname = \"a\"\nkind = \"bearer\"\nsecrets = [\"0123456789abcdef\"]\n\
                 [source.job]\nimage = \"{most}\""
            );
            let read = move || drop(HooksConfig::parse(&text, Path::new("."), &|_| None));
            std::thread::Builder::new().stack_size(5 << 18).spawn(read).unwrap().join().unwrap();
        }
    }

    #[test]
    fn words_and_signs_are_counted_wherever_they_stand() {
        for (text, count) in [("", 0), ("  ", 0), ("{{ a.b_1 }}", 7), ("not  -1", 3), ("é x", 2), ("a'b'", 4)] {
            assert_eq!(parts(text), count, "{text}");
        }
    }

    #[test]
    fn a_file_of_deep_keys_is_an_error_and_does_not_end_the_process() {
        for text in [format!("{}b = 1", "a.".repeat(30_000)), format!("a = {}", "[".repeat(30_000))] {
            assert!(HooksConfig::parse(&text, Path::new("."), &|_| None).is_err());
        }
    }

    #[test]
    fn what_is_missing_is_an_error_in_jobs_and_false_in_conditions() {
        let settings = "when = \"payload.a.b.c == 1\"\n[source.job]\nimage = \"{{ payload.image.name }}\"";
        assert!(matches!(apply(settings, &json!({})), Ok(Mapped::Ignored(_))));
        let error = apply(settings, &json!({"a": {"b": {"c": 1}}})).unwrap_err().to_string();
        assert!(error.starts_with("job.image: undefined value"), "{error}");
    }

    #[test]
    fn payloads_cannot_smuggle_templates_or_take_for_ever() {
        let settings = "[source.job]\nimage = \"golden\"\nlabels = { a = \"x{{ payload.text }}\" }";
        let made = job(settings, &json!({"text": "{{ 7 * 7 }}"}));
        assert_eq!(made.spec.labels["a"], "x{{ 7 * 7 }}");
        let settings =
            "[source.job]\nimage = \"{% for i in payload %}{% for j in payload %}x{% endfor %}{% endfor %}\"";
        let error = apply(settings, &Value::Array(vec![json!(1); 5_000])).unwrap_err().to_string();
        assert!(error.contains("steps"), "{error}");
    }
}
