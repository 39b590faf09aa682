//! From declarations to OpenAPI 3.1. Schemas come from the types themselves (JSON Schema 2020-12):
//! those of answers as they are written, those of requests as they are read.

use axum::http::{Method, StatusCode};
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::operation::{Answer, Body, Endpoint, PROBLEM, schema_of};
use crate::http::access::needed;
use crate::http::{MAX_BODY_BYTES, Problem};

const SCHEMAS: &str = "/components/schemas";
const DESCRIPTION: &str = include_str!("about.md");
/// What any request can meet: sent from elsewhere, by nobody known, too often; and our own faults.
const OF_ALL: [u16; 3] = [403, 429, 500];
/// What any request with a body can meet.
const OF_BODIES: [u16; 4] = [400, 408, 413, 415];

/// Writes the document.
pub struct Writer {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
    problems: Map<String, Value>,
}

/// Names of the formats of whole numbers, and the largest of each.
const LARGEST: [(&str, u64); 3] = [("uint32", u32::MAX as u64), ("uint", u64::MAX), ("uint64", u64::MAX)];

/// A number that does not fit is refused, so the document says what fits.
fn bounded(schema: &mut Schema) {
    let format = schema.get("format").and_then(Value::as_str);
    let largest = LARGEST.iter().find(|(name, _)| format == Some(name)).map(|(_, largest)| *largest);
    if let (Some(largest), None) = (largest, schema.get("maximum")) {
        schema.insert("maximum".to_owned(), largest.into());
    }
    transform_subschemas(&mut bounded, schema);
}

fn generator(settings: SchemaSettings) -> SchemaGenerator {
    settings
        .with_transform(bounded)
        .with(|settings| {
            settings.definitions_path = SCHEMAS.into();
            settings.meta_schema = None;
        })
        .into_generator()
}

impl Default for Writer {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12;
        Self {
            requests: generator(settings().for_deserialize()),
            answers: generator(settings().for_serialize()),
            problems: Map::new(),
        }
    }
}

impl Writer {
    /// The document about these endpoints.
    pub fn document(mut self, endpoints: &[Endpoint]) -> Value {
        let mut paths = Map::new();
        for endpoint in endpoints {
            let operation = self.operation(endpoint);
            let at = paths.entry(endpoint.path).or_insert_with(|| json!({}));
            at[endpoint.method] = operation;
        }
        let (schemas, problems) = (self.schemas(), self.problems);
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Stoker",
                "version": env!("CARGO_PKG_VERSION"),
                "description": DESCRIPTION,
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "servers": [{ "url": "/" }],
            "security": [{ "bearer": [] }, { "session": [] }],
            "tags": tags(),
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": problems,
                "securitySchemes": {
                    "bearer": {
                        "type": "http", "scheme": "bearer",
                        "description": "A token that `stoker token new` made.",
                    },
                    "session": {
                        "type": "apiKey", "in": "cookie", "name": "stoker_session",
                        "description": "What the login page gives a browser.",
                    },
                },
            },
        })
    }

    /// All schemas by name. That no name means two things is what [`ambiguous`](Self::ambiguous) tests.
    fn schemas(&mut self) -> Map<String, Value> {
        let mut all = self.answers.take_definitions(true);
        for (name, schema) in self.requests.take_definitions(true) {
            all.entry(name).or_insert(schema);
        }
        all
    }

    /// Names whose schema for reading is not the one for writing.
    pub fn ambiguous(mut self, endpoints: &[Endpoint]) -> Vec<String> {
        for endpoint in endpoints {
            self.operation(endpoint);
        }
        let read = self.requests.take_definitions(true);
        let written = self.answers.take_definitions(true);
        let differs = |(name, schema): &(String, Value)| written.get(name).is_some_and(|other| other != schema);
        read.into_iter().filter(differs).map(|(name, _)| name).collect()
    }

    fn operation(&mut self, endpoint: &Endpoint) -> Value {
        let role = needed(&method_of(endpoint), Some(endpoint.path));
        let needs = role.map_or_else(|| "Needs no token.".to_owned(), |role| format!("Needs the role `{role}`."));
        let description = [endpoint.description, &needs].join(if endpoint.description.is_empty() { "" } else { " " });
        let mut operation = json!({
            "operationId": endpoint.id,
            "summary": endpoint.summary,
            "description": description,
            "tags": [tag_of(endpoint.path)],
            "parameters": self.parameters(endpoint),
            "responses": self.responses(endpoint, role.is_some()),
        });
        if let Some(body) = &endpoint.body {
            operation["requestBody"] = self.body(body);
        }
        if role.is_none() {
            operation["security"] = json!([]);
        }
        operation
    }

    fn parameters(&mut self, endpoint: &Endpoint) -> Vec<Value> {
        let mut parameters = path_parameters(endpoint.path);
        if let Some(query) = endpoint.query {
            let mut query = query(&mut self.requests);
            bounded(&mut query);
            parameters.extend(query_parameters(&query));
        }
        let header = |(name, meaning): &(&str, &str)| json!({ "name": name, "in": "header", "description": meaning, "schema": { "type": "string" } });
        parameters.extend(endpoint.headers.iter().map(header));
        parameters
    }

    fn body(&mut self, body: &Body) -> Value {
        let schema = if body.is_free { json!({}) } else { (body.schema)(&mut self.requests).to_value() };
        let description = format!("JSON, at most {MAX_BODY_BYTES} bytes.");
        let description = if body.is_free { "As the source's `[source.job]` reads it." } else { &description };
        json!({
            "description": description,
            "required": !body.is_optional,
            "content": { "application/json": { "schema": schema } },
        })
    }

    fn responses(&mut self, endpoint: &Endpoint, needs_token: bool) -> Map<String, Value> {
        let mut responses = Map::new();
        for answer in &endpoint.answers {
            responses.insert(answer.status.to_string(), self.answer(answer));
        }
        let token = needs_token.then_some(401);
        let bodies = endpoint.body.as_ref().filter(|body| !body.is_free).map_or(&[][..], |_| &OF_BODIES);
        let hooks = endpoint.path.starts_with("/hooks/");
        let all = OF_ALL.iter().filter(|_| !hooks);
        let own = endpoint.problems.iter();
        for status in own.chain(bodies).chain(all).copied().chain(token) {
            let status = self.problem(status);
            let reference = json!({ "$ref": format!("#/components/responses/{}", status.1) });
            responses.entry(status.0).or_insert(reference);
        }
        responses
    }

    fn answer(&mut self, answer: &Answer) -> Value {
        let mut content = Map::new();
        for (kind, schema) in &answer.content {
            content.insert((*kind).to_owned(), json!({ "schema": schema(&mut self.answers) }));
        }
        let mut value = json!({ "description": answer.description, "content": content });
        if !answer.headers.is_empty() {
            value["headers"] = answer.headers.iter().map(|(name, meaning)| header(name, meaning)).collect();
        }
        value
    }

    /// The shared answer to problems of a status: status and name.
    fn problem(&mut self, status: u16) -> (String, String) {
        let words = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let words = words.unwrap_or("Problem");
        let name: String = words.split(' ').collect();
        if !self.problems.contains_key(&name) {
            let schema = schema_of::<Problem>(&mut self.answers);
            let mut value = json!({ "description": words, "content": { PROBLEM: { "schema": schema } } });
            match status {
                401 => value["headers"] = Value::from_iter([header("WWW-Authenticate", "How to say who one is.")]),
                429 | 503 => value["headers"] = Value::from_iter([header("Retry-After", "Seconds to wait.")]),
                _ => {}
            }
            self.problems.insert(name.clone(), value);
        }
        (status.to_string(), name)
    }
}

fn header(name: &str, meaning: &str) -> (String, Value) {
    (name.to_owned(), json!({ "description": meaning, "schema": { "type": "string" } }))
}

fn method_of(endpoint: &Endpoint) -> Method {
    if endpoint.method == "get" { Method::GET } else { Method::POST }
}

/// What stands in braces in a path.
fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(path_parameter).collect()
}

fn path_parameter(name: &str) -> Value {
    let (description, schema) = match name {
        "id" => (
            "A job's id, or the beginning of one as long as no other job's begins so.",
            json!({ "type": "string", "pattern": "^[0-9a-fA-F][0-9a-fA-F-]{0,35}$" }),
        ),
        "n" => ("Its number.", json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX })),
        _ => ("Its name.", json!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$" })),
    };
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema })
}

/// One parameter for each property of the object that the query is read into.
fn query_parameters(query: &Schema) -> Vec<Value> {
    let properties = query.get("properties").and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        // A query leaves out what is not there; it cannot say null.
        let mut parameter = json!({ "name": name, "in": "query", "schema": without_null(schema) });
        if let Some(description) = description {
            parameter["description"] = description;
        }
        parameter
    };
    properties.into_iter().flatten().map(parameter).collect()
}

fn without_null(mut schema: Value) -> Value {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            schema["type"] = only.clone();
        }
    }
    if let Some(Value::Array(any)) = schema.get_mut("anyOf") {
        any.retain(|one| one["type"] != "null");
        if let [only] = any.as_slice() {
            return only.clone();
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    schema
}

const TAGS: [(&str, &str); 6] = [
    ("Jobs", "Enqueue, look, retry, cancel, stop."),
    ("Dead letters", "Jobs that nobody will try again by themselves."),
    ("Hosts", "Where VMs run."),
    ("Events", "Everything that happened, and what happens."),
    ("Webhooks", "Deliveries in, callbacks out."),
    ("Server", "How it is."),
];

fn tags() -> Vec<Value> {
    TAGS.iter().map(|(name, about)| json!({ "name": name, "description": about })).collect()
}

fn tag_of(path: &str) -> &'static str {
    const BEGINNINGS: [(&str, usize); 8] = [
        ("/v1/jobs", 0),
        ("/v1/dead", 1),
        ("/v1/hosts", 2),
        ("/v1/events", 3),
        ("/v1/log", 3),
        ("/v1/hooks", 4),
        ("/v1/callbacks", 4),
        ("/hooks", 4),
    ];
    let found = BEGINNINGS.iter().find(|(beginning, _)| path.starts_with(beginning));
    TAGS[found.map_or(5, |(_, tag)| *tag)].0
}
