//! The types of the API as a table: field names, shapes, protobuf tags, merge strategies.
//!
//! The table is `data/types.txt`, generated from Kubernetes' own schema by `data/generate.py`. It is
//! parsed once, on first use, and borrows all its strings from the binary.

use std::collections::BTreeMap;
use std::sync::LazyLock;

static TEXT: &str = include_str!("../data/types.txt");
static TABLE: LazyLock<Table> = LazyLock::new(|| parse(TEXT));

struct Table {
    types: Vec<Type>,
    index: BTreeMap<&'static str, usize>,
}

/// A named object type.
#[derive(Debug)]
pub struct Type {
    /// Name as in the OpenAPI components, e.g. `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    /// `x-kubernetes-map-type: atomic` on the type: server-side apply replaces it as a whole.
    pub atomic: bool,
    /// Fields sorted by JSON name; fields that exist in protobuf only are in `inline`.
    fields: Vec<Field>,
    /// Protobuf messages whose fields stand directly in the JSON object.
    inline: Vec<Field>,
}

/// One field of a type.
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Protobuf tag; 0 when the field is not known in protobuf.
    pub tag: u32,
    /// One value, a list or a map.
    pub card: Card,
    /// Shape of a single value.
    pub shape: Shape,
    /// The schema requires the field.
    pub required: bool,
    /// How server-side apply treats a list.
    pub list: ListType,
    /// `x-kubernetes-map-type: atomic` on the field.
    pub atomic: bool,
    /// Strategic merge: `merge` for lists.
    pub merge: bool,
    /// Strategic merge: `retainKeys` for objects.
    pub retain_keys: bool,
    /// Strategic merge: a map is replaced as a whole.
    pub replace: bool,
    /// Strategic merge: key of the list's elements.
    pub merge_key: Option<&'static str>,
    /// Allowed values, comma separated; empty when the schema does not say.
    pub values: &'static str,
}

/// How many values a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Card {
    /// A single value.
    One,
    /// A list.
    List,
    /// A map with string keys.
    Map,
    /// A map of lists (`extra` of user infos).
    MapOfList,
}

/// What a single value looks like in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Str,
    /// A 32-bit integer.
    Int,
    /// A 64-bit integer.
    Long,
    /// A boolean.
    Bool,
    /// A double.
    Num,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A resource quantity.
    Quantity,
    /// An integer or a string.
    IntOrString,
    /// RFC 3339 time with seconds.
    Time,
    /// RFC 3339 time with microseconds.
    MicroTime,
    /// A Go duration string.
    Duration,
    /// Any JSON.
    Any,
    /// The field set of a `managedFields` entry.
    FieldsV1,
    /// An object of a named type (index into the table).
    Object(usize),
}

/// How server-side apply treats a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListType {
    /// Not said: atomic.
    Unset,
    /// Owned and replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Elements identified by these keys.
    Map(Vec<&'static str>),
}

impl Type {
    /// The field with this JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| f.name.cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }

    /// All fields, sorted by JSON name.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// What the protobuf tag stands for: a field, or an inline message.
    pub fn by_tag(&self, tag: u32) -> Option<(&Field, bool)> {
        let field = self
            .fields
            .iter()
            .find(|f| f.tag == tag)
            .map(|f| (f, false));
        field.or_else(|| self.inline.iter().find(|f| f.tag == tag).map(|f| (f, true)))
    }
}

impl Field {
    /// The type of the value, when it is an object of a named type.
    pub fn object(&self) -> Option<&'static Type> {
        match self.shape {
            Shape::Object(index) => TABLE.types.get(index),
            _ => None,
        }
    }
}

/// The type called `name`.
pub fn get(name: &str) -> Option<&'static Type> {
    TABLE.index.get(name).and_then(|i| TABLE.types.get(*i))
}

/// The type with this index in a `Shape::Object`.
pub fn by_index(index: usize) -> Option<&'static Type> {
    TABLE.types.get(index)
}

fn parse(text: &'static str) -> Table {
    let mut index = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("T\t") {
            let name = rest.split('\t').next().unwrap_or_default();
            let position = index.len();
            index.entry(name).or_insert(position);
        }
    }
    let mut types: Vec<Type> = Vec::with_capacity(index.len());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("T\t") {
            let (name, flags) = rest.split_once('\t').unwrap_or((rest, ""));
            let atomic = flags == "m=atomic";
            types.push(Type {
                name,
                atomic,
                fields: Vec::new(),
                inline: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix('\t')
            && let Some(current) = types.last_mut()
        {
            let (field, inline) = parse_field(rest, &index);
            if inline {
                current.inline.push(field)
            } else {
                current.fields.push(field)
            }
        }
    }
    for found in &mut types {
        found.fields.sort_by_key(|f| f.name);
        found.fields.shrink_to_fit();
    }
    Table { types, index }
}

fn parse_field(line: &'static str, index: &BTreeMap<&'static str, usize>) -> (Field, bool) {
    let mut parts = line.split('\t');
    let mut next = || parts.next().unwrap_or_default();
    let (name, tag, shape, flags) = (next(), next(), next(), next());
    let (card, shape) = match shape.strip_prefix("{[") {
        Some(rest) => (Card::MapOfList, rest),
        None => match (shape.strip_prefix('['), shape.strip_prefix('{')) {
            (Some(rest), _) => (Card::List, rest),
            (_, Some(rest)) => (Card::Map, rest),
            (None, None) => (Card::One, shape),
        },
    };
    let mut field = Field {
        name,
        tag: tag.parse().unwrap_or(0),
        card,
        shape: parse_shape(shape, index),
        required: false,
        list: ListType::Unset,
        atomic: false,
        merge: false,
        retain_keys: false,
        replace: false,
        merge_key: None,
        values: "",
    };
    let mut inline = false;
    for flag in flags.split(' ') {
        match flag.split_once('=') {
            None if flag == "!" => field.required = true,
            None if flag == "~" => inline = true,
            Some(("l", "atomic")) => field.list = ListType::Atomic,
            Some(("l", "set")) => field.list = ListType::Set,
            Some(("l", keys)) => {
                let keys = keys.strip_prefix("map:").unwrap_or_default();
                field.list = ListType::Map(keys.split(',').filter(|k| !k.is_empty()).collect());
            }
            Some(("m", value)) => field.atomic = value == "atomic",
            Some(("p", strategies)) => {
                for strategy in strategies.split(',') {
                    field.merge |= strategy == "merge";
                    field.retain_keys |= strategy == "retainKeys";
                    field.replace |= strategy == "replace";
                }
            }
            Some(("k", key)) => field.merge_key = Some(key),
            Some(("e", values)) => field.values = values,
            _ => {}
        }
    }
    (field, inline)
}

fn parse_shape(text: &str, index: &BTreeMap<&'static str, usize>) -> Shape {
    match text {
        "s" => Shape::Str,
        "i" => Shape::Int,
        "j" => Shape::Long,
        "b" => Shape::Bool,
        "n" => Shape::Num,
        "y" => Shape::Bytes,
        "q" => Shape::Quantity,
        "x" => Shape::IntOrString,
        "t" => Shape::Time,
        "u" => Shape::MicroTime,
        "d" => Shape::Duration,
        "f" => Shape::FieldsV1,
        _ => match text.strip_prefix('@').and_then(|name| index.get(name)) {
            Some(position) => Shape::Object(*position),
            None => Shape::Any,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_type() {
        for kind in crate::kinds() {
            assert!(get(kind.type_name).is_some(), "{}", kind.type_name);
        }
    }

    #[test]
    fn facts_that_everything_rests_on() {
        let spec = get("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.merge && containers.merge_key == Some("name"));
        assert_eq!(containers.list, ListType::Map(vec!["name"]));
        assert_eq!(
            containers.object().unwrap().name,
            "io.k8s.api.core.v1.Container"
        );
        assert_eq!(containers.tag, 2);
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.merge && volumes.retain_keys);
        let (inline, is_inline) = get("io.k8s.api.core.v1.Volume").unwrap().by_tag(2).unwrap();
        assert!(is_inline && inline.object().unwrap().field("emptyDir").is_some());
        let data = get("io.k8s.api.core.v1.Secret")
            .unwrap()
            .field("data")
            .unwrap();
        assert_eq!((data.card, data.shape), (Card::Map, Shape::Bytes));
    }

    #[test]
    fn no_type_is_listed_twice_and_no_reference_is_dangling() {
        let mut seen = std::collections::BTreeSet::new();
        for line in TEXT.lines() {
            if let Some(rest) = line.strip_prefix("T\t") {
                assert!(seen.insert(rest.split('\t').next().unwrap()), "{rest}");
            }
        }
        for line in TEXT.lines().filter(|l| l.starts_with('\t')) {
            if let Some((_, name)) = line.split('\t').nth(3).unwrap().split_once('@') {
                assert!(seen.contains(name), "{name}");
            }
        }
    }
}
