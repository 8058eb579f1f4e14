//! The syntax of names, labels and ports.

/// 63, the length of a DNS label (RFC 1035) and of a label's name and value.
const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
/// RFC 6335 section 5.1.
const PORT_NAME_MAX: usize = 15;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn lower_or_digit(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|c| lower_or_digit(*c) || *c == b'-')
        && bytes.first().is_some_and(|c| lower_or_digit(*c))
        && bytes.last().is_some_and(|c| lower_or_digit(*c))
}

/// What is wrong with a text as RFC 1123 label.
pub fn dns_label(text: &str) -> Vec<String> {
    bounded(text, LABEL_MAX, is_label(text), LABEL)
}

/// What is wrong with a text as RFC 1035 label.
pub(super) fn dns_1035_label(text: &str) -> Vec<String> {
    let starts = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    bounded(text, LABEL_MAX, starts && is_label(text), LABEL_1035)
}

/// What is wrong with a text as RFC 1123 subdomain.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    bounded(
        text,
        SUBDOMAIN_MAX,
        text.split('.').all(is_label),
        SUBDOMAIN,
    )
}

fn bounded(text: &str, limit: usize, fits: bool, why: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > limit {
        out.push(too_long(limit));
    }
    if !fits {
        out.push(why.to_owned());
    }
    out
}

/// What is wrong with a text as one segment of a path (names of RBAC objects).
pub(super) fn path_segment(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if matches!(text, "." | "..") {
        out.push(format!("may not be '{text}'"));
    }
    for c in ['/', '%'] {
        if text.contains(c) {
            out.push(format!("may not contain '{c}'"));
        }
    }
    out
}

fn is_qualified_part(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// What is wrong with a text as the key of a label or annotation: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED.trim_start_matches("name part ")
            )];
        }
        Some(("", name)) => {
            out.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            out.extend(
                dns_subdomain(prefix)
                    .into_iter()
                    .map(|why| format!("prefix part {why}")),
            );
            name
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        out.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        out.push(QUALIFIED.to_owned());
    }
    out
}

/// What is wrong with a text as the value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    bounded(
        text,
        LABEL_MAX,
        text.is_empty() || is_qualified_part(text),
        LABEL_VALUE,
    )
}

/// What is wrong with a text as key of a ConfigMap or Secret.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let fits = !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let mut out = bounded(text, SUBDOMAIN_MAX, fits, CONFIG_KEY);
    if matches!(text, "." | "..") {
        out.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        out.push("must not start with '..'".to_owned());
    }
    out
}

/// What is wrong with a text as the name of a port (RFC 6335).
pub(super) fn port_name(text: &str) -> Vec<&'static str> {
    let mut out = Vec::new();
    if text.len() > PORT_NAME_MAX {
        out.push("must be no more than 15 characters");
    }
    if !text.bytes().all(|c| lower_or_digit(c) || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)");
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens");
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen");
    }
    out
}

/// What is wrong with a text as the name of an environment variable.
pub(super) fn env_name(text: &str) -> Option<&'static str> {
    let fits = text.chars().all(|c| (' '..='~').contains(&c) && c != '=');
    (!fits || text.is_empty()).then_some(
        "a valid environment variable name must consist only of printable ASCII characters other than '='",
    )
}
