//! The file of tokens: who may come in, in which role, until when. It holds fingerprints only, so
//! reading it lets nobody in; writing it does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use stoker_schemas::Time;
use stoker_worker::toml_text;
use toml::{Table, Value};

use super::role::Role;
use super::secret::Fingerprint;

/// Tokens in one file: each request looks through them.
const MAX_TOKENS: usize = 1_000;
/// Longest name; it stands in events as `token:<name>`.
const MAX_NAME_BYTES: usize = 40;
/// Largest file: a thousand entries with room for comments.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Who holds it.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// What its secret hashes to.
    pub fingerprint: Fingerprint,
    /// When it ends, if it does.
    pub expires: Option<Time>,
}

impl Token {
    /// Whether it has ended.
    pub fn is_over(&self, now: Time) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// Everything that is wrong with a file of tokens, entry by entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct TokenErrors(pub Vec<String>);

impl fmt::Display for TokenErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Checks a name of a token.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name: 1 to {MAX_NAME_BYTES} of a-z, 0-9 and -_."))
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Vec<Token>, TokenErrors> {
    let wrong = |what: String| TokenErrors(vec![format!("{}: {what}", path.display())]);
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(wrong(format!("{size} bytes, at most {MAX_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let named =
        |TokenErrors(errors)| TokenErrors(errors.into_iter().map(|e| format!("{}: {e}", path.display())).collect());
    parse(&text).map_err(named)
}

/// Reads the text of one; all errors at once.
pub fn parse(text: &str) -> Result<Vec<Token>, TokenErrors> {
    let file: Table = toml_text::parse(text).map_err(|e| TokenErrors(vec![e.to_string()]))?;
    let mut errors: Vec<_> =
        file.keys().filter(|key| *key != "token").map(|key| format!("{key}: unknown, only [[token]] is")).collect();
    let entries = match file.get("token") {
        Some(Value::Array(entries)) => entries.as_slice(),
        Some(_) => {
            errors.push("token: write [[token]] before each".to_owned());
            &[]
        }
        None => {
            errors.push("holds no [[token]]; make one with: stoker token new --name me --role admin".to_owned());
            &[]
        }
    };
    if entries.len() > MAX_TOKENS {
        errors.push(format!("{} tokens, at most {MAX_TOKENS}", entries.len()));
    }
    let tokens: Vec<_> = (1..).zip(entries).filter_map(|(n, entry)| one(n, entry, &mut errors)).collect();
    twice(&tokens, &mut errors);
    if errors.is_empty() { Ok(tokens) } else { Err(TokenErrors(errors)) }
}

/// One entry; what is wrong with it is added to the errors.
fn one(position: usize, entry: &Value, errors: &mut Vec<String>) -> Option<Token> {
    let Value::Table(entry) = entry else {
        errors.push(format!("token {position}: is not a table"));
        return None;
    };
    let shown = entry.get("name").and_then(Value::as_str).map(|name| format!(" ({name})")).unwrap_or_default();
    let before = errors.len();
    let mut wrong = |field: &str, what: String| errors.push(format!("token {position}{shown}: {field}: {what}"));
    for key in entry.keys().filter(|key| !["name", "role", "sha256", "expires"].contains(&key.as_str())) {
        wrong(key, "unknown; name, role, sha256 and expires are known".to_owned());
    }
    let mut text = |field: &str| match entry.get(field) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => {
            wrong(field, "must be text".to_owned());
            None
        }
        None => {
            wrong(field, "is missing".to_owned());
            None
        }
    };
    let (name, role, sha256) = (text("name"), text("role"), text("sha256"));
    if let Some(Err(what)) = name.as_deref().map(check_name) {
        wrong("name", what);
    }
    let role = role.map(|r| r.parse::<Role>().map_err(|e| wrong("role", format!("{r:?} is none; {e}"))));
    let fingerprint = sha256.map(|s| s.parse::<Fingerprint>().map_err(|e| wrong("sha256", e)));
    let expires = match entry.get("expires").map(end) {
        Some(Err(what)) => {
            wrong("expires", what);
            None
        }
        Some(Ok(end)) => Some(end),
        None => None,
    };
    if errors.len() > before {
        return None;
    }
    Some(Token { name: name?, role: role?.ok()?, fingerprint: fingerprint?.ok()?, expires })
}

/// A moment, as TOML writes it or as text.
fn end(value: &Value) -> Result<Time, String> {
    let text = match value {
        Value::Datetime(at) => at.to_string(),
        Value::String(text) => text.clone(),
        _ => String::new(),
    };
    text.parse().map_err(|_| "must be a time with its offset, such as 2027-01-31T00:00:00Z".to_owned())
}

/// A name twice makes events ambiguous; a secret twice makes roles so.
fn twice(tokens: &[Token], errors: &mut Vec<String>) {
    let (mut names, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    for token in tokens {
        *names.entry(token.name.as_str()).or_insert(0) += 1;
        secrets.entry(token.fingerprint.to_string()).or_insert_with(Vec::new).push(token.name.as_str());
    }
    errors.extend(names.iter().filter(|(_, n)| **n > 1).map(|(name, n)| format!("{n} tokens are called {name:?}")));
    let shared = secrets.values().filter(|who| who.len() > 1);
    errors.extend(shared.map(|who| format!("tokens {} have the same sha256", who.join(", "))));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_names_who_may_come_in() {
        let text = format!(
            "[[token]]\nname = \"ci\"\nrole = \"operate\"\nsha256 = \"{SHA}\"\nexpires = 2027-01-31T00:00:00Z\n\n\
             [[token]]\nname = \"ada\"\nrole = \"admin\"\nsha256 = \"{}\"\n",
            "0".repeat(64)
        );
        let tokens = parse(&text).unwrap();
        assert_eq!((tokens[0].name.as_str(), tokens[0].role), ("ci", Role::Operate));
        assert_eq!(tokens[0].fingerprint, Fingerprint::of("abc"));
        let (before, after) = ("2027-01-30T23:59:59Z".parse().unwrap(), "2027-01-31T00:00:00Z".parse().unwrap());
        assert!(!tokens[0].is_over(before) && tokens[0].is_over(after) && !tokens[1].is_over(after));
    }

    #[test]
    fn every_error_comes_at_once_with_its_entry_and_field() {
        let text = format!(
            "strange = 1\n[[token]]\nname = \"Ada L\"\nrole = \"root\"\nsha256 = \"x\"\nexpires = 2027-01-31\n\
             [[token]]\nname = \"b\"\nsha256 = \"{SHA}\"\nsecret = \"y\"\n[[token]]\nname = 7\n"
        );
        let TokenErrors(errors) = parse(&text).unwrap_err();
        let all = errors.join("\n");
        for part in [
            "strange: unknown",
            "token 1 (Ada L): name:",
            "token 1 (Ada L): role: \"root\"",
            "token 1 (Ada L): sha256:",
            "token 1 (Ada L): expires:",
            "token 2 (b): secret: unknown",
            "token 2 (b): role: is missing",
            "token 3: name: must be text",
            "token 3: sha256: is missing",
        ] {
            assert!(all.contains(part), "{part} in\n{all}");
        }
        assert!(!all.contains("\"y\""), "what may be a secret is not repeated");
    }

    #[test]
    fn a_file_that_nests_too_deep_is_refused_with_its_name_on_any_thread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, stoker_schemas::fuzz::deep_toml()).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("tokens.toml: line 1: nests more than 16 levels deep"), "{error}");
    }

    #[test]
    fn nothing_stands_there_twice_and_nothing_is_not_enough() {
        let entry = |name: &str| format!("[[token]]\nname = \"{name}\"\nrole = \"read\"\nsha256 = \"{SHA}\"\n");
        let TokenErrors(errors) = parse(&(entry("a") + &entry("a"))).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(parse("").unwrap_err().to_string().contains("stoker token new"));
        assert!(parse("token = 1").is_err());
        assert!(parse("[[token]").is_err());
    }
}
