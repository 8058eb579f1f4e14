//! Reading a JSON configuration with errors that name the field, e.g. `ipam.ranges[0][1].subnet`.

use std::fmt::Display;
use std::str::FromStr;

use api::cni::{Error, ErrorCode};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    path: String,
    /// `None` for what is absent or null.
    value: Option<&'a Value>,
}

/// The value of `key`, or else of a key that differs in case only: so do the reference plugins read,
/// and containerd writes `HostPort` where the convention has `hostPort`.
fn find<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let other = || {
        object
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
    };
    object.get(key).or_else(|| other().map(|(_, value)| value))
}

impl<'a> Field<'a> {
    /// The whole configuration.
    pub fn root(value: &'a Value) -> Self {
        Self {
            path: String::new(),
            value: Some(value),
        }
    }

    /// The field `key` of this object; absent if this is.
    ///
    /// # Errors
    /// This is not an object.
    pub fn get(&self, key: &str) -> Result<Self, Error> {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        let value = self.object()?.and_then(|object| find(object, key));
        Ok(Self {
            path,
            value: value.filter(|v| !v.is_null()),
        })
    }

    /// Whether it stands there.
    pub fn is_set(&self) -> bool {
        self.value.is_some()
    }

    /// An error about this field.
    pub fn invalid(&self, why: impl Display) -> Error {
        Error::new(
            ErrorCode::INVALID_CONFIG,
            format!("{}: {why}", self.title()),
        )
    }

    /// An error about this field, which asks for something that is not done.
    pub fn unsupported(&self, why: impl Display) -> Error {
        Error::new(
            ErrorCode::UNSUPPORTED_FIELD,
            format!("{}: {why}", self.title()),
        )
    }

    fn title(&self) -> &str {
        if self.path.is_empty() {
            "the configuration"
        } else {
            &self.path
        }
    }

    fn wrong_type(&self, wanted: &str) -> Error {
        let value = self.value.map(ToString::to_string).unwrap_or_default();
        let why = format!("{}: must be {wanted}, not {value}", self.title());
        Error::new(ErrorCode::DECODE, why)
    }

    /// The object, if set.
    ///
    /// # Errors
    /// It is something else.
    pub fn object(&self) -> Result<Option<&'a Map<String, Value>>, Error> {
        match self.value {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.wrong_type("an object")),
        }
    }

    /// The items of the list; none if absent.
    ///
    /// # Errors
    /// It is something else.
    pub fn list(&self) -> Result<Vec<Self>, Error> {
        let items = match self.value {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(self.wrong_type("a list")),
        };
        let field = |(at, value)| Self {
            path: format!("{}[{at}]", self.path),
            value: Some(value),
        };
        Ok(items.iter().enumerate().map(field).collect())
    }

    /// The text, if set.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self) -> Result<Option<&'a str>, Error> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type("a text")),
        }
    }

    /// The truth value, or `default`.
    ///
    /// # Errors
    /// It is something else.
    pub fn flag(&self, default: bool) -> Result<bool, Error> {
        match self.value {
            None => Ok(default),
            Some(Value::Bool(on)) => Ok(*on),
            Some(_) => Err(self.wrong_type("true or false")),
        }
    }

    /// The whole number, if set.
    ///
    /// # Errors
    /// It is something else, negative or too large.
    pub fn number(&self) -> Result<Option<u32>, Error> {
        match self.value {
            None => Ok(None),
            Some(value) => {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                number
                    .map(Some)
                    .ok_or_else(|| self.wrong_type("a whole number"))
            }
        }
    }

    /// The whole number, if set, however large.
    ///
    /// # Errors
    /// It is something else or negative.
    pub fn large(&self) -> Result<Option<u64>, Error> {
        match self.value {
            None => Ok(None),
            Some(value) => {
                let number = value.as_u64();
                number
                    .map(Some)
                    .ok_or_else(|| self.wrong_type("a whole number"))
            }
        }
    }

    /// The text as something that is written as text, if set.
    ///
    /// # Errors
    /// It is no text, or not one that parses; the error says what was `wanted`.
    pub fn parsed<T: FromStr>(&self, wanted: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.text()? else {
            return Ok(None);
        };
        let bad = |_why| self.invalid(format_args!("{text:?} is not {wanted}"));
        text.parse().map(Some).map_err(bad)
    }

    /// The network with its length, if set.
    ///
    /// # Errors
    /// It is no text like `10.1.0.0/16`.
    pub fn network(&self) -> Result<Option<IpNetwork>, Error> {
        let wanted = "a network like 10.1.0.0/16";
        match self.text()? {
            Some(text) if !text.contains('/') => {
                Err(self.invalid(format_args!("{text:?} is not {wanted}")))
            }
            _ => self.parsed(wanted),
        }
    }

    /// Texts of a list.
    ///
    /// # Errors
    /// It is no list of texts.
    pub fn texts(&self) -> Result<Vec<String>, Error> {
        let text = |item: &Self| match item.text()? {
            Some(text) => Ok(text.to_owned()),
            None => Err(item.wrong_type("a text")),
        };
        self.list()?.iter().map(text).collect()
    }

    /// Refuses keys that are neither known nor someone's own (which have a dot, a slash or an
    /// underscore in front).
    ///
    /// # Errors
    /// The first key that is not known.
    pub fn only(&self, known: &[&str]) -> Result<(), Error> {
        let Some(object) = self.object()? else {
            return Ok(());
        };
        let foreign = |key: &str| key.starts_with('_') || key.contains(['.', '/']);
        let mut keys = object.keys();
        let is_known = |key: &str| known.iter().any(|known| known.eq_ignore_ascii_case(key));
        match keys.find(|key| !is_known(key) && !foreign(key)) {
            Some(key) => Err(self.get(key)?.unsupported("no such field")),
            None => Ok(()),
        }
    }
}
