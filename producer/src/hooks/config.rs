//! The hooks file: who may send what, and where callbacks may go. All errors come at once, each
//! with its source and field.

use std::collections::BTreeMap;
use std::path::Path;

use axum::http::HeaderName;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use stoker_worker::toml_text;

use super::mapping::Mapping;
use super::reader::Reader;
use super::secret::{MAX_SECRETS, Secret, read_file};
use crate::callbacks::CallbackConfig;

/// A hooks file of this size describes hundreds of sources.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Sources of one file; each is a row of the dashboard's page.
const MAX_SOURCES: usize = 200;
/// Longest name of a source; it is part of addresses and of idempotency keys.
const MAX_NAME_BYTES: usize = 40;
/// Body of a delivery unless a source says otherwise, and the most that it may say (GitHub's own).
const DEFAULT_BODY_BYTES: usize = 1 << 20;
const MAX_BODY_BYTES: usize = 25 << 20;

/// Everything in a hooks file.
#[derive(Debug, Clone, Default)]
pub struct HooksConfig {
    /// Sources by name.
    pub sources: BTreeMap<String, Source>,
    /// Callbacks; none are sent without.
    pub callbacks: Option<CallbackConfig>,
}

/// What is wrong with a hooks file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigErrors(pub Vec<String>);

/// Who may send deliveries, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, as in `/hooks/<name>`.
    pub name: String,
    /// How its deliveries are signed.
    pub kind: Kind,
    /// Any of these will do: the old and the new while they are changed over.
    pub secrets: Vec<Secret>,
    /// From payload to job.
    pub mapping: Mapping,
    /// Largest body.
    pub max_body_bytes: usize,
}

/// How deliveries are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Standard Webhooks 1.0.
    Standard,
    /// `X-Hub-Signature-256`.
    Github,
    /// HMAC-SHA256 of the body in a header.
    Hmac {
        /// Which header.
        header: String,
        /// What stands before the signature (`sha256=`).
        prefix: String,
        /// How the signature is written.
        encoding: Encoding,
        /// Header with the delivery's id; without, it is the body's digest.
        id_header: Option<String>,
    },
    /// A secret in `Authorization`.
    Bearer {
        /// Header with the delivery's id; without, it is the body's digest.
        id_header: Option<String>,
    },
}

impl Kind {
    /// Its name in the hooks file.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Github => "github",
            Self::Hmac { .. } => "hmac",
            Self::Bearer { .. } => "bearer",
        }
    }
}

/// How bytes are written in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Two digits a byte.
    Hex,
    /// With padding.
    Base64,
}

impl Encoding {
    /// The bytes; none when it is not written so.
    pub fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Base64 => STANDARD.decode(text).ok(),
            Self::Hex => {
                let (pairs, rest) = text.as_bytes().as_chunks::<2>();
                let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
                if rest.is_empty() { bytes } else { None }
            }
        }
    }

    /// Written so.
    pub fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Base64 => STANDARD.encode(bytes),
            Self::Hex => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

impl HooksConfig {
    /// Reads a hooks file. `env` looks a variable up.
    pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        let wrong = |why: String| ConfigErrors(vec![format!("hooks file {}: {why}", path.display())]);
        let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(wrong(format!("larger than {MAX_FILE_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(".")), env).map_err(|ConfigErrors(errors)| {
            ConfigErrors(errors.into_iter().map(|e| format!("hooks file {}: {e}", path.display())).collect())
        })
    }

    /// Reads the text of one. Files that it names are looked for in `folder`.
    pub fn parse(text: &str, folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        // Only where it is: the parser's message quotes the line, which may hold a secret.
        let table: toml::Table =
            toml_text::parse(text).map_err(|e| ConfigErrors(vec![e.unquoted(text).to_string()]))?;
        let mut file = Reader::new(String::new(), table);
        let mut config = Self::default();
        for (index, table) in file.tables("source").into_iter().enumerate().take(MAX_SOURCES + 1) {
            let name = table.get("name").and_then(toml::Value::as_str);
            let place = name.map_or_else(|| format!("source #{}", index + 1), |name| format!("source {name:?}"));
            let mut reader = Reader::new(place, table);
            let source = Source::read(&mut reader, folder, env);
            file.take_errors(reader);
            if let Some(source) = source
                && let Some(twice) = config.sources.insert(source.name.clone(), source)
            {
                file.wrong(&format!("source {:?}", twice.name), "name: there are two of it");
            }
        }
        if config.sources.len() > MAX_SOURCES {
            file.wrong("source", &format!("at most {MAX_SOURCES} are taken"));
        }
        if let Some(table) = file.table("callbacks") {
            let mut reader = Reader::new("callbacks".to_owned(), table);
            config.callbacks = CallbackConfig::read(&mut reader, folder, env);
            file.take_errors(reader);
        }
        let errors = file.finish();
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }
}

impl Source {
    fn read(reader: &mut Reader, folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let name = reader.text("name").unwrap_or_default();
        let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_good) {
            reader.wrong("name", &format!("1 to {MAX_NAME_BYTES} of a-z, 0-9, - and _"));
        }
        let kind = read_kind(reader);
        let secrets = read_secrets(reader, kind == Some(Kind::Standard), folder, env);
        let max_body_bytes = match reader.number("max_body_bytes") {
            None => DEFAULT_BODY_BYTES,
            Some(n) => match usize::try_from(n) {
                Ok(n) if (1..=MAX_BODY_BYTES).contains(&n) => n,
                _ => {
                    reader.wrong("max_body_bytes", &format!("1 to {MAX_BODY_BYTES}"));
                    DEFAULT_BODY_BYTES
                }
            },
        };
        let mapping = Mapping::read(reader);
        Some(Self { name, kind: kind?, secrets, mapping: mapping?, max_body_bytes })
    }
}

fn read_kind(reader: &mut Reader) -> Option<Kind> {
    let kind = reader.text("kind").unwrap_or_default();
    match kind.as_str() {
        "standard" => Some(Kind::Standard),
        "github" => Some(Kind::Github),
        "hmac" => {
            let header = header(reader, "header").unwrap_or_else(|| {
                reader.wrong("header", "names the header with the signature");
                String::new()
            });
            let prefix = reader.text("prefix").unwrap_or_default();
            let encoding = match reader.text("encoding").as_deref() {
                None | Some("hex") => Encoding::Hex,
                Some("base64") => Encoding::Base64,
                Some(_) => {
                    reader.wrong("encoding", "hex or base64");
                    Encoding::Hex
                }
            };
            Some(Kind::Hmac { header, prefix, encoding, id_header: header_of_id(reader) })
        }
        "bearer" => Some(Kind::Bearer { id_header: header_of_id(reader) }),
        _ => {
            reader.wrong("kind", "standard, github, hmac or bearer");
            None
        }
    }
}

fn header_of_id(reader: &mut Reader) -> Option<String> {
    header(reader, "id_header")
}

fn header(reader: &mut Reader, field: &str) -> Option<String> {
    let name = reader.text(field)?.to_ascii_lowercase();
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        reader.wrong(field, "is not a header's name");
    }
    Some(name)
}

/// From `secrets`, `secrets_env` and `secrets_file`; none is ever quoted in an error.
pub fn read_secrets(
    reader: &mut Reader,
    standard: bool,
    folder: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<Secret> {
    let mut texts: Vec<(&str, String)> = reader.texts("secrets").into_iter().map(|text| ("secrets", text)).collect();
    for name in reader.texts("secrets_env") {
        match env(&name).filter(|text| !text.is_empty()) {
            Some(text) => texts.push(("secrets_env", text.trim().to_owned())),
            None => reader.wrong("secrets_env", &format!("the variable {name} is not set")),
        }
    }
    for name in reader.texts("secrets_file") {
        match read_file(&folder.join(&name)) {
            Ok(lines) => texts.extend(lines.into_iter().map(|line| ("secrets_file", line))),
            Err(why) => reader.wrong("secrets_file", &format!("{name}: {why}")),
        }
    }
    let count = texts.len();
    let read = if standard { Secret::standard } else { Secret::plain };
    let mut secrets = Vec::new();
    for (index, (field, text)) in texts.iter().enumerate() {
        match read(text) {
            Ok(secret) => secrets.push(secret),
            Err(why) => reader.wrong(field, &format!("secret #{} {why}", index + 1)),
        }
    }
    if count == 0 && !reader.has_errors_at("secrets_") {
        reader.wrong("secrets", "give secrets, secrets_env or secrets_file");
    }
    if count > MAX_SECRETS {
        reader.wrong("secrets", &format!("{count} are given, at most {MAX_SECRETS} are taken"));
    }
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        (name == "SET").then(|| "a secret of the environment".to_owned())
    }

    #[test]
    fn every_mistake_comes_at_once_with_its_place_and_without_secrets() {
        let text = r#"
            colour = "red"
            [[source]]
            name = "Bad Name"
            kind = "hmac"
            secrets = ["hunter2"]
            when = "payload.a =="
            encoding = "rot13"
            [[source]]
            name = "b"
            kind = "carrier pigeon"
            secrets_env = ["UNSET"]
            speed = 3
            [source.job]
            image = "{{ payload.x"
            [callbacks]
            secrets = ["whsec_!"]
            allow = ["10.0.0.0/8", "no such host/"]"#;
        let ConfigErrors(errors) = HooksConfig::parse(text, Path::new("."), &env).unwrap_err();
        let all = errors.join("\n");
        for part in [
            "colour: is not a setting",
            "source \"Bad Name\": name:",
            "source \"Bad Name\": secrets: secret #1 is shorter",
            "source \"Bad Name\": when:",
            "source \"Bad Name\": header:",
            "source \"Bad Name\": encoding:",
            "source \"Bad Name\": job:",
            "source \"b\": kind:",
            "source \"b\": secrets_env: the variable UNSET is not set",
            "source \"b\": speed: is not a setting",
            "source \"b\": job.image:",
            "callbacks: secrets: secret #1 is not base64",
            "callbacks: allow: \"no such host/\"",
        ] {
            assert!(all.contains(part), "{part} is not in:\n{all}");
        }
        assert!(!all.contains("hunter2") && !all.contains("whsec_!"), "{all}");
    }

    #[test]
    fn a_file_that_nests_too_deep_is_refused_with_its_name_on_any_thread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hooks.toml");
        std::fs::write(&path, stoker_schemas::fuzz::deep_toml()).unwrap();
        let error = HooksConfig::load(&path, &env).unwrap_err().to_string();
        assert!(error.contains("hooks.toml: line 1: nests more than 16 levels deep"), "{error}");
    }

    #[test]
    fn secrets_come_from_environment_and_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secrets"), "a secret of a file\n\nanother of the file\n").unwrap();
        let text = "[[source]]\nname = \"a\"\nkind = \"github\"\nsecrets_env = \"SET\"\nsecrets_file = \"secrets\"\n\
                    [source.job]\nimage = \"golden\"";
        let config = HooksConfig::parse(text, folder.path(), &env).unwrap();
        assert_eq!(config.sources["a"].secrets.len(), 3);
        assert!(!format!("{config:?}").contains("a secret of"), "{config:?}");
        let twice = format!("{text}\n{text}");
        assert!(HooksConfig::parse(&twice, folder.path(), &env).unwrap_err().to_string().contains("two of it"));
    }
}
