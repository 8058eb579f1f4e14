//! Label and field selectors, from query strings (`a=b,c in (d,e),!f`) and from the
//! `matchLabels`/`matchExpressions` objects of the API.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::meta::null_as_default;

/// A conjunction of label requirements. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What its value must be.
    pub condition: Condition,
}

/// What a label's value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `key=value`, `key in (..)`: present with one of these values.
    In(Vec<String>),
    /// `key!=value`, `key notin (..)`: absent, or with another value.
    NotIn(Vec<String>),
    /// `key`: present.
    Exists,
    /// `!key`: absent.
    DoesNotExist,
    /// `key>5`: present, an integer, and greater.
    Gt(i64),
    /// `key<5`: present, an integer, and less.
    Lt(i64),
}

/// Why a selector was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not parse.
    #[error("unable to parse requirement: {0}")]
    Syntax(String),
    /// An operator this selector form does not have, or values that do not fit it.
    #[error("{0}")]
    Operator(String),
}

/// The API's label selector object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelectorSpec {
    /// Labels that must have exactly these values.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub match_expressions: Vec<LabelExpression>,
}

/// One entry of `matchExpressions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelExpression {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist` (node selectors also `Gt`, `Lt`).
    pub operator: String,
    /// Values for `In` and `NotIn`.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether the selector has no requirement and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements, in the order given.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Parses the query-string form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text)? {
            let part = part.trim();
            if !part.is_empty() {
                requirements.push(parse_requirement(part)?);
            } else if !text.trim().is_empty() {
                return Err(SelectorError::Syntax(
                    "found '', expected: identifier after ','".to_owned(),
                ));
            }
        }
        Ok(LabelSelector { requirements })
    }

    /// Labels that must all have the given values (the plain selector of a Service).
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                condition: Condition::In(vec![value.clone()]),
            })
            .collect();
        LabelSelector { requirements }
    }

    /// From the API's object form.
    pub fn from_spec(spec: &LabelSelectorSpec) -> Result<Self, SelectorError> {
        let mut out = Self::from_labels(&spec.match_labels);
        for expression in &spec.match_expressions {
            out.requirements.push(Requirement {
                key: expression.key.clone(),
                condition: condition(&expression.operator, &expression.values)?,
            });
        }
        Ok(out)
    }

    /// From the API's object form as JSON; `null` and nothing at all match no object upstream, so
    /// the caller decides about absence.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, SelectorError> {
        let spec: LabelSelectorSpec = serde_json::from_value(value.clone())
            .map_err(|e| SelectorError::Syntax(e.to_string()))?;
        Self::from_spec(&spec)
    }

    /// Whether labels, looked up by `get`, satisfy every requirement.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|r| r.condition.holds(get(&r.key)))
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether the `metadata.labels` of a JSON object satisfy every requirement.
    pub fn matches_object(&self, object: &serde_json::Value) -> bool {
        let labels = object.get("metadata").and_then(|m| m.get("labels"));
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(|v| v.as_str()))
    }
}

impl Condition {
    /// Whether a label with this value (or its absence) satisfies the condition.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Condition::In(values) => value.is_some_and(|v| values.iter().any(|o| o == v)),
            Condition::NotIn(values) => !value.is_some_and(|v| values.iter().any(|o| o == v)),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
            Condition::Gt(bound) => number().is_some_and(|n| n > *bound),
            Condition::Lt(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// The condition of an expression with this operator (`In`, `NotIn`, `Exists`, `DoesNotExist`,
/// `Gt`, `Lt`).
pub fn condition(operator: &str, values: &[String]) -> Result<Condition, SelectorError> {
    let number = || match values {
        [one] => one.parse().map_err(|_e| {
            SelectorError::Operator(format!(
                "for {operator:?} operator, the value must be an integer, got {one:?}"
            ))
        }),
        _ => Err(SelectorError::Operator(format!(
            "for {operator:?} operator, exactly one value is required"
        ))),
    };
    match operator {
        "In" | "NotIn" if values.is_empty() => Err(SelectorError::Operator(format!(
            "for {operator:?} operator, values set can't be empty"
        ))),
        "In" => Ok(Condition::In(values.to_vec())),
        "NotIn" => Ok(Condition::NotIn(values.to_vec())),
        "Exists" | "DoesNotExist" if !values.is_empty() => Err(SelectorError::Operator(format!(
            "values set must be empty for {operator:?}"
        ))),
        "Exists" => Ok(Condition::Exists),
        "DoesNotExist" => Ok(Condition::DoesNotExist),
        "Gt" => number().map(Condition::Gt),
        "Lt" => number().map(Condition::Lt),
        _ => Err(SelectorError::Operator(format!(
            "{operator:?} is not a valid label selector operator"
        ))),
    }
}

fn split_outside_parentheses(text: &str) -> Result<Vec<&str>, SelectorError> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Err(SelectorError::Syntax("found ')' without '('".into())),
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(SelectorError::Syntax(
            "found '', expected: ',' or ')'".into(),
        ));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn parse_requirement(part: &str) -> Result<Requirement, SelectorError> {
    if let Some(key) = part.strip_prefix('!') {
        return requirement(key.trim(), Condition::DoesNotExist);
    }
    if let Some(open) = part.find('(') {
        let Some(list) = part[open + 1..].strip_suffix(')') else {
            return Err(SelectorError::Syntax(format!(
                "found text after ')' in {part:?}"
            )));
        };
        let mut values: Vec<String> = list.split(',').map(|v| v.trim().to_owned()).collect();
        values.sort();
        let head: Vec<&str> = part[..open].split_whitespace().collect();
        for value in &values {
            check_value(value)?;
        }
        return match head[..] {
            [key, "in"] => requirement(key, Condition::In(values)),
            [key, "notin"] => requirement(key, Condition::NotIn(values)),
            _ => Err(SelectorError::Syntax(format!(
                "found {:?}, expected: in, notin",
                &part[..open]
            ))),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        check_value(value.trim())?;
        return requirement(key.trim(), Condition::NotIn(vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        check_value(value.trim())?;
        return requirement(key.trim(), Condition::In(vec![value.trim().to_owned()]));
    }
    for (sign, make) in [
        ('>', Condition::Gt as fn(i64) -> Condition),
        ('<', Condition::Lt),
    ] {
        if let Some((key, value)) = part.split_once(sign) {
            let bound = value.trim().parse().map_err(|_e| {
                SelectorError::Syntax(format!(
                    "for 'Gt', 'Lt' operators, the value must be an integer, got {:?}",
                    value.trim()
                ))
            })?;
            return requirement(key.trim(), make(bound));
        }
    }
    requirement(part, Condition::Exists)
}

fn check_value(value: &str) -> Result<(), SelectorError> {
    let ok = value.len() <= 63
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !value.starts_with(['-', '_', '.'])
        && !value.ends_with(['-', '_', '.']);
    if ok {
        Ok(())
    } else {
        Err(SelectorError::Syntax(format!(
            "Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        )))
    }
}

fn requirement(key: &str, condition: Condition) -> Result<Requirement, SelectorError> {
    let name = key.rsplit('/').next().unwrap_or_default();
    let ok = !name.is_empty()
        && name.len() <= 63
        && key.matches('/').count() <= 1
        && !key.starts_with('/')
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if ok {
        Ok(Requirement {
            key: key.to_owned(),
            condition,
        })
    } else {
        Err(SelectorError::Syntax(format!(
            "Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        )))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, r) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.condition {
                Condition::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Condition::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Condition::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Condition::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Condition::Exists => f.write_str(key)?,
                Condition::DoesNotExist => write!(f, "!{key}")?,
                Condition::Gt(bound) => write!(f, "{key}>{bound}")?,
                Condition::Lt(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

/// A conjunction of field requirements: `spec.nodeName=n1,status.phase!=Failed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field's path, e.g. `status.phase`.
    pub field: String,
    /// `=` and `==` are true, `!=` is false.
    pub equal: bool,
    /// The value compared with.
    pub value: String,
}

impl FieldSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether the selector has no requirement.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements, in the order given.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Parses the query-string form; `\,`, `\=` and `\\` in values stand for themselves.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let (at, operator) = find_operator(term).ok_or_else(|| {
                SelectorError::Operator(format!(
                    "invalid selector: {text:?}; can't understand {term:?}"
                ))
            })?;
            requirements.push(FieldRequirement {
                field: term[..at].to_owned(),
                equal: operator != "!=",
                value: unescape(&term[at + operator.len()..], text)?,
            });
        }
        Ok(FieldSelector { requirements })
    }

    /// The value a field must equal, when the selector says so (`metadata.name=x`).
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.equal && r.field == field)
            .map(|r| r.value.as_str())
    }

    /// Whether fields, looked up by `get`, satisfy every requirement. A missing field is "".
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|r| (get(&r.field).unwrap_or_default() == r.value) == r.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, r) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if r.equal { "=" } else { "!=" };
            let value = r
                .value
                .replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        if c == ',' && !escaped {
            terms.push(&text[start..at]);
            start = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    terms.push(&text[start..]);
    terms
}

fn find_operator(term: &str) -> Option<(usize, &'static str)> {
    term.char_indices().find_map(|(at, _)| {
        ["!=", "==", "="]
            .into_iter()
            .find(|op| term[at..].starts_with(op))
            .map(|op| (at, op))
    })
}

fn unescape(value: &str, whole: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                _ => {
                    return Err(SelectorError::Operator(format!(
                        "invalid selector: {whole:?}; invalid escape sequence"
                    )));
                }
            },
            '=' => {
                return Err(SelectorError::Operator(format!(
                    "invalid selector: {whole:?}; can't understand {value:?}"
                )));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
