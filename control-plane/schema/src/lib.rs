//! What the API server knows about Kubernetes' kinds, without doing any I/O: which kinds there are,
//! their discovery and OpenAPI documents, defaults, validation, patches, tables and protobuf bodies.
//!
//! A write goes through, in this order: `protobuf::decode` (or JSON), `fields::check_types`,
//! `fields::{unknown, duplicates}` (for `fieldValidation`), `fields::normalize`,
//! `convert::to_storage`, `defaults::apply`, `strategy::prepare_*`, `validate::{create, update}`.
//! Names, uids, times, versions and addresses are the server's own.

pub mod apply;
pub mod convert;
pub mod defaults;
pub mod discovery;
pub mod fields;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod scale;
pub mod strategy;
pub mod table;
pub mod types;
pub mod validate;

pub use kinds::{Gvk, Kind, Subresource, kind_by_gvk, kind_by_resource, kind_of, kinds};
