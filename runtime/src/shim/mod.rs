//! The pod's shim: one single-threaded process that holds the pod's namespaces, starts its
//! containers through libcontainer, carries their output to log files and sees them end.

pub(crate) mod start;
