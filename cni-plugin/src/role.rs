//! Which plugin this program is in a call: the name it was called by, else the configuration's
//! `type`, says so. Besides its own name it answers to those of the reference plugins it replaces.

/// A plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Bridge, addresses, port mappings and rate limits in one; behind another plugin only the
    /// last two.
    Seaway,
    /// The same with the reference plugin's defaults.
    Bridge,
    /// Addresses alone, for other plugins.
    HostLocal,
    /// Port mappings behind another plugin.
    Portmap,
    /// Rate limits behind another plugin.
    Bandwidth,
    /// The loopback device of a pod.
    Loopback,
    /// Writes the configuration of another plugin from flannel's `subnet.env`.
    Flannel,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Seaway,
        Self::Bridge,
        Self::HostLocal,
        Self::Portmap,
        Self::Bandwidth,
        Self::Loopback,
        Self::Flannel,
    ];

    /// The name of the program, and the `type` of a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seaway => "seaway-cni",
            Self::Bridge => "bridge",
            Self::HostLocal => "host-local",
            Self::Portmap => "portmap",
            Self::Bandwidth => "bandwidth",
            Self::Loopback => "loopback",
            Self::Flannel => "flannel",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The role of a call of `program` (a path or a name) with a configuration of this `type`.
    pub fn of(program: &str, kind: &str) -> Self {
        let name = program.rsplit('/').next().unwrap_or_default();
        match Self::named(name) {
            // Our own name says nothing: a runtime takes it from `type` as well.
            None | Some(Self::Seaway) => Self::named(kind).unwrap_or(Self::Seaway),
            Some(role) => role,
        }
    }

    /// Only works behind another plugin.
    pub fn is_always_chained(self) -> bool {
        matches!(self, Self::Portmap | Self::Bandwidth)
    }

    /// Maps ports.
    pub fn maps_ports(self) -> bool {
        matches!(self, Self::Seaway | Self::Bridge | Self::Portmap)
    }

    /// Limits rates.
    pub fn limits_rates(self) -> bool {
        matches!(self, Self::Seaway | Self::Bridge | Self::Bandwidth)
    }

    /// Refuses what it does not know; the reference plugins pass over it.
    pub fn is_strict(self) -> bool {
        self == Self::Seaway
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_counts_before_the_type() {
        for (program, kind, role) in [
            ("/opt/cni/bin/seaway-cni", "seaway-cni", Role::Seaway),
            ("seaway-cni", "", Role::Seaway),
            ("seaway-cni", "flannel", Role::Flannel),
            ("/opt/cni/bin/host-local", "bridge", Role::HostLocal),
            ("/usr/bin/a-test", "portmap", Role::Portmap),
            ("bridge", "bridge", Role::Bridge),
            ("x", "y", Role::Seaway),
        ] {
            assert_eq!(Role::of(program, kind), role, "{program} {kind}");
        }
    }
}
