//! Placeholder; the crate's owner writes this page.
