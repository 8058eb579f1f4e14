//! What Kubernetes and CNI say on the wire, as far as we read it: slim serde types, quantities,
//! selectors, networks. No I/O. Fields that nobody here reads are left out; unknown ones are ignored.

pub mod cidr;
pub mod cni;
pub mod core;
pub mod discovery;
pub mod meta;
pub mod networking;
pub mod pod;
pub mod quantity;
pub mod selector;
pub mod watch;
