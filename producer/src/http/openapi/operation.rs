//! How one operation is declared: its route and handler, and what it takes and answers.

use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::http::Api;

/// Gives a type's schema, once the generator is there.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Media type of problems (RFC 9457).
pub const PROBLEM: &str = "application/problem+json";
const JSON: &str = "application/json";

/// A route with its handler, and the words about it.
pub struct Endpoint {
    /// Where.
    pub path: &'static str,
    /// How, in small letters.
    pub method: &'static str,
    /// What the router gets.
    pub route: MethodRouter<Api>,
    /// A short name, for generated clients.
    pub id: &'static str,
    /// What it is for.
    pub summary: &'static str,
    /// More, where a person needs it.
    pub description: &'static str,
    /// Query parameters: an object whose properties they are.
    pub query: Option<SchemaOf>,
    /// Headers that it reads: name and meaning.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The body it takes.
    pub body: Option<Body>,
    /// Answers when all is well.
    pub answers: Vec<Answer>,
    /// Problems of its own, by status; those that any request can have are added to all.
    pub problems: Vec<u16>,
}

/// A request's body.
pub struct Body {
    /// Its schema, unless it is free.
    pub schema: SchemaOf,
    /// It may be left out.
    pub is_optional: bool,
    /// It is judged by the settings of whoever runs the server, not by a schema of ours.
    pub is_free: bool,
}

/// One answer.
pub struct Answer {
    /// Status.
    pub status: u16,
    /// What it says.
    pub description: &'static str,
    /// Media types and what is in them; nothing of ours is without one.
    pub content: Vec<(&'static str, SchemaOf)>,
    /// Headers of its own: name and meaning.
    pub headers: Vec<(&'static str, &'static str)>,
}

/// The schema of a type.
pub fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The object that a type is, not a reference to it.
fn inline<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

/// Reads.
pub fn get<H, T>(path: &'static str, id: &'static str, handler: H) -> Endpoint
where
    H: Handler<T, Api>,
    T: 'static,
{
    Endpoint::new(path, "get", id, routing::get(handler))
}

/// Changes something.
pub fn post<H, T>(path: &'static str, id: &'static str, handler: H) -> Endpoint
where
    H: Handler<T, Api>,
    T: 'static,
{
    Endpoint::new(path, "post", id, routing::post(handler))
}

/// Sets something.
pub fn put<H, T>(path: &'static str, id: &'static str, handler: H) -> Endpoint
where
    H: Handler<T, Api>,
    T: 'static,
{
    Endpoint::new(path, "put", id, routing::put(handler))
}

impl Endpoint {
    const fn new(path: &'static str, method: &'static str, id: &'static str, route: MethodRouter<Api>) -> Self {
        Self {
            path,
            method,
            route,
            id,
            summary: "",
            description: "",
            query: None,
            headers: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// What it is for.
    pub fn about(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    /// More about it.
    pub fn more(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    /// Takes these query parameters.
    pub fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(inline::<T>), ..self }
    }

    /// Reads a header.
    pub fn header(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.headers.push((name, meaning));
        self
    }

    /// Needs this body.
    pub fn body<T: JsonSchema>(self) -> Self {
        Self { body: Some(Body { schema: schema_of::<T>, is_optional: false, is_free: false }), ..self }
    }

    /// Takes this body; without one, its defaults count.
    pub fn optional_body<T: JsonSchema>(self) -> Self {
        Self { body: Some(Body { schema: schema_of::<T>, is_optional: true, is_free: false }), ..self }
    }

    /// Takes a body that is not ours to describe.
    pub fn any_body(self) -> Self {
        Self { body: Some(Body { schema: schema_of::<serde_json::Value>, is_optional: true, is_free: true }), ..self }
    }

    /// Answers JSON.
    pub fn answers<T: JsonSchema>(self, status: u16, description: &'static str) -> Self {
        self.answers_as::<T>(status, description, JSON)
    }

    /// Answers in a media type; said twice with a status, that has both.
    pub fn answers_as<T: JsonSchema>(mut self, status: u16, description: &'static str, kind: &'static str) -> Self {
        let content = (kind, schema_of::<T> as SchemaOf);
        match self.answers.iter_mut().find(|answer| answer.status == status) {
            Some(answer) => answer.content.push(content),
            None => {
                self.answers.push(Answer { status, description, content: vec![content], headers: Vec::new() });
            }
        }
        self
    }

    /// The last answer has this header.
    pub fn with(mut self, name: &'static str, meaning: &'static str) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.headers.push((name, meaning));
        }
        self
    }

    /// Can end in these problems.
    pub fn fails(mut self, statuses: &[u16]) -> Self {
        self.problems.extend_from_slice(statuses);
        self
    }
}
