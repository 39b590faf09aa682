//! Depth is bounded whatever it is made of, and nothing that is flat is refused.

use std::thread;

use toml::Table;

use super::*;

/// The stack of a thread of the runtime.
const STACK_BYTES: usize = 2 << 20;

fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    thread::Builder::new().stack_size(STACK_BYTES).spawn(work).unwrap().join().unwrap()
}

fn levels(of: usize) -> [String; 4] {
    let keys = vec!["a"; of].join(".");
    [
        format!("{keys} = 1"),
        format!("[{}]", vec!["a"; of - 1].join(" . ")),
        format!("a = {}{}", "[".repeat(of), "]".repeat(of)),
        format!("a = {}1{}", "{ a = ".repeat(of), "}".repeat(of)),
    ]
}

/// What `toml` bounds at 80 brackets of 80 parts each.
fn multiplied() -> String {
    let key = vec!["a"; 79].join(".");
    format!("{}1{}", format!("{key} = {{").repeat(78), "}".repeat(78))
}

#[test]
fn keys_within_brackets_do_not_end_the_process() {
    for text in [multiplied(), multiplied().replace('}', ""), multiplied().replace('}', "]")] {
        let error = on_a_small_stack(move || parse::<Table>(&text).unwrap_err());
        assert!(matches!(error, TomlError::TooDeep { line: 1 }), "{error}");
    }
}

#[test]
fn the_deepest_that_is_taken_is_taken_on_a_small_stack_and_one_level_more_is_not() {
    for (text, deeper) in levels(MAX_LEVELS).into_iter().zip(levels(MAX_LEVELS + 2)) {
        let shown = text.clone();
        let taken = on_a_small_stack(move || parse::<Table>(&text).map(|table| table.len()));
        assert_eq!(taken.unwrap(), 1, "{shown}");
        let error = parse::<Table>(&format!("# two\nb = 1\n{deeper}\n")).unwrap_err().to_string();
        assert!(error.starts_with("line 3: nests more than 16 levels deep"), "{deeper}: {error}");
    }
}

#[test]
fn what_is_long_and_flat_is_taken() {
    let flat = [
        "a.b.c = 1\n".to_owned() + &(0..50).map(|n| format!("a.b.d{n} = {n}.5\n")).collect::<String>(),
        format!("a = [{}]", "1.5, ".repeat(100)),
        format!("a = [\n{}]", "[1.5, { b.c = 2.5 }],\n".repeat(100)),
        format!("a = \"{0}\"\nb = '{0}'\nc = '''\n{0}'''\nd = \"\"\"\\\"{0}\"\"\" # {0}", "[{a.b.".repeat(50)),
        "[[source]]\n[source.job]\nlabels = { a = \"{{ payload.a.b }}\" }\n".to_owned(),
    ];
    for text in flat {
        assert!(parse::<Table>(&text).is_ok(), "{text}\n{:?}", parse::<Table>(&text));
    }
}

#[test]
fn an_error_has_its_line_and_says_nothing_of_it_where_that_is_asked_for() {
    let text = "a = 1\nsecret = \"hush\" x\n";
    let error = parse::<Table>(text).unwrap_err();
    assert!(error.to_string().contains("hush"));
    let unquoted = error.unquoted(text).to_string();
    assert!(unquoted.starts_with("line 2: ") && !unquoted.contains("hush"), "{unquoted}");
    let deep = "a.".repeat(20);
    let unquoted = parse::<Table>(&deep).unwrap_err().unquoted(&deep).to_string();
    assert!(unquoted.starts_with("line 1: nests"), "{unquoted}");
}
