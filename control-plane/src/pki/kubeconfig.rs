//! Kubeconfig files with everything embedded.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::cert::{Authority, Leaf, facts};
use super::files::{SECRET, read_if_there, write_atomically};
use super::{Error, Request};

/// Days a client certificate must still be valid to be kept.
const RENEW_DAYS_LEFT: i64 = 30;

/// Writes the kubeconfig unless a good one is there.
pub(super) fn ensure(
    authority: &Authority,
    path: &Path,
    user: &str,
    leaf: &Leaf<'_>,
    request: &Request,
    anew: bool,
) -> Result<(), Error> {
    let old = read_if_there(path)?.and_then(|bytes| String::from_utf8(bytes).ok());
    let old_server = old.as_deref().and_then(|text| field(text, "server"));
    if let (false, Some(text)) = (anew, &old) {
        let same_server = request.server.is_none() || request.server.as_deref() == old_server;
        let days_left = field(text, "client-certificate-data")
            .and_then(|data| BASE64.decode(data).ok())
            .and_then(|pem| facts(&pem).ok())
            .map_or(0, |facts| facts.days_left);
        if same_server && days_left > RENEW_DAYS_LEFT {
            return Ok(());
        }
    }
    let server = request
        .server
        .as_deref()
        .or(old_server)
        .unwrap_or(&request.default_server);
    let (cert, key) = authority.sign(leaf)?;
    let text = render(server, user, authority.pem(), &cert, &key);
    write_atomically(path, text.as_bytes(), SECRET)
}

fn render(server: &str, user: &str, ca: &str, cert: &str, key: &str) -> String {
    let (ca, cert, key) = (BASE64.encode(ca), BASE64.encode(cert), BASE64.encode(key));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: seaway
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: \"{user}\"
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
contexts:
- name: seaway
  context:
    cluster: seaway
    user: \"{user}\"
current-context: seaway
"
    )
}

/// The value of a field in a file that `render` wrote.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))
}
