//! Reads a JSON value into the raw form, field by field, so that wrong types and unknown fields
//! are all reported at once, each with its dotted name. (serde stops at the first.)

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::FieldError;
use super::raw::{RawHttp, RawNetwork, RawReadiness, RawRetry, RawSpec, RawStatic};
use crate::limits::clip;

/// One JSON object being taken apart.
struct Fields<'a> {
    path: &'a str,
    map: Map<String, Value>,
    known: Vec<&'static str>,
    errors: &'a mut Vec<FieldError>,
}

pub(super) fn dotted(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    fn open(path: &'a str, value: &Value, errors: &'a mut Vec<FieldError>) -> Self {
        let map = match value {
            Value::Object(map) => map.clone(),
            other => {
                let field = if path.is_empty() { "(job)" } else { path };
                errors.push(FieldError {
                    field: field.to_owned(),
                    message: format!("expected an object, got {}", kind(other)),
                    hint: "write it as {\"field\": value}".to_owned(),
                });
                Map::new()
            }
        };
        Self { path, map, known: Vec::new(), errors }
    }

    /// Takes a field out; absent and null are the same.
    fn raw(&mut self, field: &'static str) -> Option<Value> {
        self.known.push(field);
        self.map.remove(field).filter(|v| !v.is_null())
    }

    fn take<T: DeserializeOwned>(&mut self, field: &'static str, expected: &str) -> Option<T> {
        let value = self.raw(field)?;
        match serde_json::from_value(value.clone()) {
            Ok(parsed) => Some(parsed),
            Err(_) => {
                self.errors.push(FieldError {
                    field: dotted(self.path, field),
                    message: format!("expected {expected}, got {}", clip(&value.to_string(), 80)),
                    hint: String::new(),
                });
                None
            }
        }
    }

    fn text(&mut self, field: &'static str) -> Option<String> {
        self.take(field, "text")
    }

    fn number(&mut self, field: &'static str) -> Option<u64> {
        self.take(field, "a whole number of 0 or more")
    }

    fn nested<T>(&mut self, field: &'static str, read: fn(&str, &Value, &mut Vec<FieldError>) -> T) -> Option<T> {
        let value = self.raw(field)?;
        Some(read(&dotted(self.path, field), &value, self.errors))
    }

    /// Reports what is left over.
    fn close(self) {
        for key in self.map.keys() {
            let near = self.known.iter().find(|k| similar(k, key));
            self.errors.push(FieldError {
                field: dotted(self.path, &clip(key, 80)),
                message: "unknown field".to_owned(),
                hint: match near {
                    Some(k) => format!("did you mean {k}?"),
                    None => format!("known here: {}", self.known.join(", ")),
                },
            });
        }
    }
}

/// Same letters but for case, '-' and '_', or one is the beginning of the other.
fn similar(known: &str, given: &str) -> bool {
    let plain = |s: &str| s.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let (known, given) = (plain(known), plain(given));
    known == given || (given.len() >= 3 && (known.starts_with(&given) || given.starts_with(&known)))
}

/// The whole job.
pub(super) fn read_spec(value: &Value, errors: &mut Vec<FieldError>) -> RawSpec {
    let mut f = Fields::open("", value, errors);
    let spec = RawSpec {
        image: f.text("image"),
        vcpus: f.number("vcpus"),
        memory_mib: f.number("memory_mib"),
        disk_mib: f.number("disk_mib"),
        kernel_args: f.text("kernel_args"),
        network: f.nested("network", read_network).flatten(),
        readiness: f.nested("readiness", read_readiness),
        retry: f.nested("retry", read_retry),
        ttl_s: f.number("ttl_s"),
        priority: f.take("priority", "\"normal\" or \"high\""),
        pool: f.text("pool"),
        labels: f.take("labels", "an object of texts"),
        host_labels: f.take("host_labels", "an object of texts"),
        callback_url: f.text("callback_url"),
        idempotency_key: f.text("idempotency_key"),
    };
    f.close();
    spec
}

fn read_network(path: &str, value: &Value, errors: &mut Vec<FieldError>) -> Option<RawNetwork> {
    if value == "dhcp" {
        return Some(RawNetwork::Dhcp);
    }
    // An object that says nothing must not quietly mean DHCP.
    if value.as_object().is_none_or(|object| object.values().all(Value::is_null)) {
        errors.push(FieldError {
            field: path.to_owned(),
            message: format!("expected \"dhcp\" or {{\"static\": …}}, got {}", clip(&value.to_string(), 80)),
            hint: "leave it out for DHCP".to_owned(),
        });
        return None;
    }
    let mut f = Fields::open(path, value, errors);
    let inner = f.nested("static", |path, value, errors| {
        let mut f = Fields::open(path, value, errors);
        let read = RawStatic { address: f.text("address"), prefix: f.number("prefix"), gateway: f.text("gateway") };
        f.close();
        read
    });
    f.close();
    inner.map(RawNetwork::Static)
}

fn read_readiness(path: &str, value: &Value, errors: &mut Vec<FieldError>) -> RawReadiness {
    let mut f = Fields::open(path, value, errors);
    let read = RawReadiness {
        http: f.nested("http", |path, value, errors| {
            let mut f = Fields::open(path, value, errors);
            let read = RawHttp {
                port: f.number("port"),
                path: f.text("path"),
                expected_status: f.number("expected_status"),
                body_contains: f.text("body_contains"),
            };
            f.close();
            read
        }),
        check_identity: f.take("check_identity", "true or false"),
        deadline_ms: f.number("deadline_ms"),
        units: f.take("units", "a list of texts"),
    };
    f.close();
    read
}

fn read_retry(path: &str, value: &Value, errors: &mut Vec<FieldError>) -> RawRetry {
    let mut f = Fields::open(path, value, errors);
    let read = RawRetry {
        max_attempts: f.number("max_attempts"),
        base_ms: f.number("base_ms"),
        cap_ms: f.number("cap_ms"),
        jitter_percent: f.number("jitter_percent"),
        per_cause: f.take("per_cause", "an object of cause: attempts"),
    };
    f.close();
    read
}
