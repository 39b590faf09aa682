//! Writing HTML: text goes in escaped, there is no other way in for text.

use std::fmt::{self, Display, Write};

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Neither scripts nor anything from elsewhere; the style is in the page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:1rem auto;padding:0 1rem;\
    color:#1b1f24;background:#fff}table{border-collapse:collapse;width:100%}th,td{text-align:left;\
    padding:.25rem .75rem .25rem 0;border-bottom:1px solid #d0d7de;vertical-align:top}\
    td,code,pre{font-variant-numeric:tabular-nums}code,pre{font-family:ui-monospace,monospace;font-size:13px}\
    pre{overflow-x:auto;background:#f6f8fa;padding:.75rem}a{color:#0550ae}\
    @media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}a{color:#79c0ff}\
    th,td{border-color:#30363d}pre{background:#161b22}}";

/// Escapes on the way out.
pub struct Escaped<T>(pub T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() && c != '\n' => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A page in the making.
pub struct Html(String);

impl Html {
    /// A page with a title.
    pub fn new(title: &str) -> Self {
        let title = Escaped(title);
        Self(format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>\n"
        ))
    }

    /// Markup of ours.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// An element with text in it.
    pub fn text(&mut self, tag: &'static str, text: impl Display) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "<{tag}>{}</{tag}>", Escaped(text));
        self
    }

    /// A link to a path of ours, in an element.
    pub fn link(&mut self, tag: &'static str, path: impl Display, text: impl Display) -> &mut Self {
        let _ = writeln!(self.0, "<{tag}><a href=\"{}\">{}</a></{tag}>", Escaped(path), Escaped(text));
        self
    }

    /// The head of a table.
    pub fn table(&mut self, columns: &[&'static str]) -> &mut Self {
        self.raw("<table><tr>");
        for column in columns {
            self.text("th", column);
        }
        self.raw("</tr>\n")
    }

    /// The whole page.
    pub fn page(mut self) -> Response {
        self.raw("</body></html>\n");
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        (headers, self.0).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::Escaped;

    #[test]
    fn text_cannot_become_markup() {
        let text = Escaped("<script>alert('x')</script>&\"\u{1b}[31m").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot; [31m");
    }
}
