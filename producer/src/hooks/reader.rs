//! Reads a table of settings field by field and remembers everything that is wrong with it.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// One table in reading. What nobody asked for is an error in the end: it is a typing error.
#[derive(Debug)]
pub struct Reader {
    place: String,
    table: Table,
    errors: Vec<String>,
}

impl Reader {
    /// `place` stands before each error.
    pub fn new(place: String, table: Table) -> Self {
        Self { place, table, errors: Vec::new() }
    }

    /// A field is wrong.
    pub fn wrong(&mut self, field: &str, why: &str) {
        let place = if self.place.is_empty() { String::new() } else { format!("{}: ", self.place) };
        self.errors.push(format!("{place}{field}: {why}"));
    }

    /// Whether a field whose name begins so was found wrong.
    pub fn has_errors_at(&self, field: &str) -> bool {
        let place = format!("{}: {field}", self.place);
        self.errors.iter().any(|error| error.starts_with(&place))
    }

    /// A text.
    pub fn text(&mut self, field: &str) -> Option<String> {
        self.take(field, "is not a text")
    }

    /// A whole number.
    pub fn number(&mut self, field: &str) -> Option<i64> {
        self.take(field, "is not a whole number")
    }

    /// Texts; a single one may stand without brackets.
    pub fn texts(&mut self, field: &str) -> Vec<String> {
        let list = match self.table.remove(field) {
            None => return Vec::new(),
            Some(Value::String(text)) => return vec![text],
            Some(Value::Array(list)) => list,
            Some(_) => {
                self.wrong(field, "is not a list of texts");
                return Vec::new();
            }
        };
        let texts: Vec<_> = list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        if texts.len() < list.len() {
            self.wrong(field, "is not a list of texts");
        }
        texts
    }

    /// A table in it.
    pub fn table(&mut self, field: &str) -> Option<Table> {
        self.take(field, "is not a table")
    }

    /// A value of a kind that TOML itself knows.
    fn take<T: DeserializeOwned>(&mut self, field: &str, otherwise: &str) -> Option<T> {
        let taken = self.table.remove(field)?.try_into().ok();
        if taken.is_none() {
            self.wrong(field, otherwise);
        }
        taken
    }

    /// Tables in it (`[[field]]`).
    pub fn tables(&mut self, field: &str) -> Vec<Table> {
        let list = match self.table.remove(field) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => vec![other],
        };
        let mut tables = Vec::new();
        for value in list {
            match value {
                Value::Table(table) => tables.push(table),
                _ => self.wrong(field, &format!("is written as [[{field}]]")),
            }
        }
        tables
    }

    /// Takes over what is wrong with a table in it.
    pub fn take_errors(&mut self, inner: Self) {
        self.errors.extend(inner.finish());
    }

    /// Everything that is wrong.
    pub fn finish(mut self) -> Vec<String> {
        for field in std::mem::take(&mut self.table).keys() {
            self.wrong(field, "is not a setting");
        }
        self.errors
    }
}
