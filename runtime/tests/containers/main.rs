//! Containers on the real kernel: needs root and a static busybox.

#[cfg(test)]
mod common;
#[cfg(test)]
mod lives;
#[cfg(test)]
mod pods;
#[cfg(test)]
mod sessions;
