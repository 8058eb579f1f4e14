//! Results of versions 0.1.0 and 0.2.0, which know one address of each family and no interfaces.
//! <https://github.com/containernetworking/cni/blob/spec-v0.2.0/SPEC.md#result>

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{AddResult, Dns, IpConfig, Route, Version};

/// A result that an old version has no words for: it holds no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a result without addresses cannot be written before version 0.3.0")]
pub struct NoAddress;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Legacy {
    cni_version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<Family>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<Family>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct Family {
    ip: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl AddResult {
    /// The result as `version` prints it. Before 0.3.0 that is the first address of each family
    /// with the routes of its family.
    ///
    /// # Errors
    /// The version is older than 0.3.0, and there is no address.
    pub fn written(self, version: Version) -> Result<Value, NoAddress> {
        if version >= Version::V0_3_0 {
            return Ok(json!(self.in_version(version)));
        }
        let family = |ipv4: bool| {
            let first = self.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4)?;
            let routes = self.routes.iter().filter(|r| r.dst.is_ipv4() == ipv4);
            Some(Family {
                ip: first.address,
                gateway: first.gateway,
                routes: routes.map(|r| Route::to(r.dst, r.gw)).collect(),
            })
        };
        let (ip4, ip6) = (family(true), family(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(NoAddress);
        }
        Ok(json!(Legacy {
            cni_version: version.to_string(),
            ip4,
            ip6,
            dns: self.dns.clone(),
        }))
    }

    /// Reads a result of any version.
    ///
    /// # Errors
    /// The field that does not fit.
    pub fn read(value: &Value) -> Result<Self, serde_json::Error> {
        if value.get("ip4").is_none() && value.get("ip6").is_none() {
            return Self::deserialize(value);
        }
        let legacy = Legacy::deserialize(value)?;
        let mut result = Self {
            cni_version: legacy.cni_version,
            dns: legacy.dns,
            ..Self::default()
        };
        for family in legacy.ip4.into_iter().chain(legacy.ip6) {
            result.ips.push(IpConfig {
                version: None,
                address: family.ip,
                gateway: family.gateway,
                interface: None,
            });
            result.routes.extend(family.routes);
        }
        Ok(result)
    }
}
