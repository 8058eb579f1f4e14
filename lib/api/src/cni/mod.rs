//! What the Container Network Interface says on the wire: configuration lists, results and errors of
//! specification versions 0.1.0 to 1.1.0. <https://github.com/containernetworking/cni/blob/main/SPEC.md>

mod conflist;
mod legacy;
mod result;

pub use conflist::{ConfList, ConfListError};
pub use legacy::NoAddress;
pub use result::{AddResult, Dns, Interface, IpConfig, Route};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of the specification that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: a result has at most one address of each family.
    V0_1_0,
    /// 0.2.0: the same, and VERSION.
    V0_2_0,
    /// 0.3.0: results with interfaces, and plugins in a chain.
    V0_3_0,
    /// 0.3.1: the same.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: addresses no longer carry their family.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, MTU of interfaces, more about routes.
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest version.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it is written in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A version that we do not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CNI version {0:?} is not one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0")]
pub struct UnknownVersion(pub String);

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let found = Self::ALL.into_iter().find(|v| v.as_str() == text);
        found.ok_or_else(|| UnknownVersion(text.to_owned()))
    }
}

/// The answer to VERSION.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionResult {
    /// The version of this answer.
    pub cni_version: String,
    /// What the plugin speaks.
    pub supported_versions: Vec<String>,
}

/// Kinds of errors. The first group is the specification's, from 100 on they are the plugin's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// `cniVersion` is one that the plugin does not speak.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// The configuration asks for something that the plugin does not do.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is not known.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// A `CNI_*` variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO: Self = Self(5);
    /// The configuration is not JSON of the expected shape.
    pub const DECODE: Self = Self(6);
    /// The configuration says something impossible.
    pub const INVALID_CONFIG: Self = Self(7);
    /// Something in passing; the runtime should try again.
    pub const TRY_AGAIN: Self = Self(11);
    /// STATUS: ADD would not work.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: ADD would not work, and containers there are may be cut off.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// The kernel refused an operation.
    pub const KERNEL: Self = Self(100);
    /// No address could be leased.
    pub const ADDRESS: Self = Self(101);
    /// CHECK found something other than ADD had left.
    pub const CHECK: Self = Self(102);
    /// A plugin that this one calls could not be found or run.
    pub const DELEGATE: Self = Self(103);
}

/// An error as a plugin prints it on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{msg}{}", if details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct Error {
    /// The version of the configuration, where it could be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    /// What kind of error it is.
    pub code: ErrorCode,
    /// One line that names the operation and its object.
    pub msg: String,
    /// More, if there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self {
            cni_version: String::new(),
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }
}

/// One container's interface in one network: what GC lists and what a lease belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's name for the container (the pod's sandbox).
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Interface name in the container.
    pub ifname: String,
}

/// The key of GC's list of attachments that still exist.
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

#[cfg(test)]
mod tests;
