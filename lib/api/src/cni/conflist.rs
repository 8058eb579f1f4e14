//! Configuration lists, as they stand in `/etc/cni/net.d/*.conflist`, and what a runtime makes of
//! one for each plugin.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::{AddResult, Attachment, UnknownVersion, VALID_ATTACHMENTS, Version};

/// A network: plugins that are called one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfList {
    /// The version the plugins are called in; of lists older than the key: 0.2.0.
    #[serde(default = "oldest")]
    pub cni_version: String,
    /// More versions that would do; the newest that the runtime speaks is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni_versions: Vec<String>,
    /// The network's name, unique on a host.
    pub name: String,
    /// The runtime does not call CHECK.
    #[serde(
        default,
        deserialize_with = "is_true",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub disable_check: bool,
    /// The runtime does not call GC.
    #[serde(
        default,
        rename = "disableGC",
        deserialize_with = "is_true",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub disable_gc: bool,
    /// The list is complete. Otherwise the configurations of single plugins in the directory beside
    /// it that has the network's name are more plugins, behind those of the list.
    #[serde(
        default,
        deserialize_with = "is_true",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub load_only_inlined_plugins: bool,
    /// The plugins' own configurations, each with a `type`.
    #[serde(default)]
    pub plugins: Vec<Map<String, Value>>,
}

fn oldest() -> String {
    "0.2.0".to_owned()
}

/// A boolean; as libcni does, also one in quotation marks.
fn is_true<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    match Value::deserialize(from)? {
        Value::Bool(is) => Ok(is),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(serde::de::Error::custom(format!(
            "must be true or false, not {other}"
        ))),
    }
}

/// A list that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfListError {
    /// Not the JSON of a list.
    #[error("{0}")]
    Json(String),
    /// The configuration of a single plugin beside the list cannot be read.
    #[error("{0}")]
    Beside(String),
    /// Names a version that we do not speak.
    #[error("cniVersion: {0}")]
    Version(#[from] UnknownVersion),
    /// Has no name.
    #[error("name: must be a name")]
    Name,
    /// Names no plugin.
    #[error("plugins: must name at least one plugin")]
    NoPlugins,
    /// A plugin without a type.
    #[error("plugins[{0}].type: must be the name of a program")]
    PluginType(usize),
}

impl ConfList {
    /// Reads a `.conflist`, or a `.conf` with a single plugin, and checks it.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfListError> {
        Self::parse_with(text, |_| Ok(Vec::new()))
    }

    /// The same. Unless the list is complete, `beside` is asked for the texts of more plugins'
    /// configurations, by the network's name.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse_with(
        text: &str,
        beside: impl FnOnce(&str) -> Result<Vec<String>, String>,
    ) -> Result<Self, ConfListError> {
        let json = |e: serde_json::Error| ConfListError::Json(e.to_string());
        let mut value: Map<String, Value> = serde_json::from_str(text).map_err(json)?;
        let is_single = !value.contains_key("plugins") && value.contains_key("type");
        if is_single {
            let keys = ["cniVersion", "name"].into_iter();
            let kept = keys.filter_map(|key| Some((key.to_owned(), value.get(key)?.clone())));
            let mut list: Map<String, Value> = kept.collect();
            let one = Value::Array(vec![Value::Object(value)]);
            list.insert("plugins".to_owned(), one);
            value = list;
        }
        let mut list: Self = serde_json::from_value(Value::Object(value)).map_err(json)?;
        list.version()?;
        // It is the name of a directory, too.
        if list.name.is_empty() || list.name.contains('/') || list.name.starts_with('.') {
            return Err(ConfListError::Name);
        }
        if !is_single && !list.load_only_inlined_plugins {
            for text in beside(&list.name).map_err(ConfListError::Beside)? {
                list.plugins
                    .push(serde_json::from_str(&text).map_err(json)?);
            }
        }
        if list.plugins.is_empty() {
            return Err(ConfListError::NoPlugins);
        }
        match (0..list.plugins.len()).find(|at| list.plugin_type(*at).is_none()) {
            Some(at) => Err(ConfListError::PluginType(at)),
            None => Ok(list),
        }
    }

    /// The version to call the plugins in: the newest we speak of all that the list names.
    ///
    /// # Errors
    /// It names none that we speak.
    pub fn version(&self) -> Result<Version, UnknownVersion> {
        let named = self.cni_versions.iter().chain([&self.cni_version]);
        let newest = named.filter_map(|v| v.parse().ok()).max();
        newest.ok_or_else(|| UnknownVersion(self.cni_version.clone()))
    }

    /// The program of plugin number `at`; none if there is no such plugin.
    pub fn plugin_type(&self, at: usize) -> Option<&str> {
        self.plugins
            .get(at)?
            .get("type")?
            .as_str()
            .filter(|name| !name.is_empty() && !name.contains('/'))
    }

    /// What plugin number `at` reads on its standard input. `capabilities` holds what the runtime
    /// has to offer (`portMappings`, `bandwidth`, ...); a plugin gets those that it asks for.
    pub fn plugin_input(
        &self,
        at: usize,
        capabilities: &Map<String, Value>,
        previous: Option<&AddResult>,
    ) -> Value {
        let mut conf = self.base_input(at);
        let wanted = conf.remove("capabilities");
        let wants = |key: &str| {
            wanted
                .as_ref()
                .is_some_and(|w| w.get(key) == Some(&json!(true)))
        };
        let offered = capabilities.iter().filter(|(key, _)| wants(key));
        let runtime: Map<String, Value> = offered.map(|(k, v)| (k.clone(), v.clone())).collect();
        if !runtime.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), json!(previous));
        }
        Value::Object(conf)
    }

    /// What plugin number `at` reads on its standard input for GC.
    pub fn gc_input(&self, at: usize, valid: &[Attachment]) -> Value {
        let mut conf = self.base_input(at);
        conf.remove("capabilities");
        conf.insert(VALID_ATTACHMENTS.to_owned(), json!(valid));
        Value::Object(conf)
    }

    fn base_input(&self, at: usize) -> Map<String, Value> {
        let mut conf = self.plugins.get(at).cloned().unwrap_or_default();
        let version = self
            .version()
            .map_or(self.cni_version.clone(), |v| v.to_string());
        conf.insert("cniVersion".to_owned(), Value::String(version));
        conf.insert("name".to_owned(), Value::String(self.name.clone()));
        conf
    }
}
