//! Text from guests and users, made harmless for Markdown: it is shown, never interpreted.

/// Without terminal escapes and control characters.
pub fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            // CSI: up to its final byte.
            '\u{1b}' if chars.as_str().starts_with('[') => {
                chars.next();
                chars.by_ref().find(|c| ('\u{40}'..='\u{7e}').contains(c));
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// For a table's cell or a sentence: no new column, no line, no markup, no HTML.
pub fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in plain(&text.replace(['\n', '\r'], " ")).chars() {
        if "\\`*_{}[]<>|#".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// For a fenced block: lines that cannot end the fence.
pub fn fenced(text: &str) -> String {
    text.lines().map(|line| plain(line).replace("```", "'''")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_a_terminal_are_gone() {
        assert_eq!(plain("\u{1b}[0;32m  OK  \u{1b}[0m] Started\u{7} x\ty"), "  OK  ] Started x y");
        assert_eq!(plain("\u{1b}["), "");
    }

    #[test]
    fn a_guest_cannot_write_markup() {
        assert_eq!(inline("a|b\n<script>"), "a\\|b \\<script\\>");
        assert!(!fenced("x\n```\n# y").contains("```"));
    }
}
