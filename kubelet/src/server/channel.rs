//! The remote command protocol over WebSocket: subprotocols v4 and v5.channel.k8s.io. Pure.
//! Each binary message begins with one byte, the channel. Source: apimachinery's `remotecommand/constants.go`.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

/// Channel numbers.
pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// In v5: the next byte names a channel that is closed.
const CLOSE: u8 = 255;

/// Which subprotocol to speak: the best of those offered in the header.
pub(super) fn choose(offered: &str) -> Option<&'static str> {
    const KNOWN: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
    let offered: Vec<_> = offered.split(',').map(str::trim).collect();
    KNOWN.into_iter().find(|k| offered.contains(k))
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromClient {
    Stdin(Bytes),
    StdinEnds,
    Resize {
        width: u16,
        height: u16,
    },
    /// Nothing we heed.
    Other,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Reads one message.
pub(super) fn parse(message: &Bytes) -> FromClient {
    match message.first() {
        Some(&STDIN) => FromClient::Stdin(message.slice(1..)),
        Some(&CLOSE) if message.get(1) == Some(&STDIN) => FromClient::StdinEnds,
        Some(&RESIZE) => match serde_json::from_slice::<Size>(&message[1..]) {
            Ok(Size { width, height }) => FromClient::Resize { width, height },
            Err(_) => FromClient::Other,
        },
        _ => FromClient::Other,
    }
}

/// One message on `channel`.
pub(super) fn frame(channel: u8, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 1);
    out.put_u8(channel);
    out.put_slice(bytes);
    out.freeze()
}

/// The Status a session ends with, on the error channel.
pub(super) fn end(result: Result<i32, String>) -> Bytes {
    let status: Value = match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => json!({
            "metadata": {}, "status": "Failure", "message": why,
            "reason": "InternalError", "code": 500,
        }),
    };
    frame(ERROR, status.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let parse = |b: &'static [u8]| parse(&Bytes::from_static(b));
        assert_eq!(
            parse(b"\x00hi"),
            FromClient::Stdin(Bytes::from_static(b"hi"))
        );
        assert_eq!(parse(b"\xff\x00"), FromClient::StdinEnds);
        assert_eq!(
            parse(b"\x04{\"Width\":100,\"Height\":40}"),
            FromClient::Resize {
                width: 100,
                height: 40
            }
        );
        for other in [&b""[..], b"\x04{", b"\x09x", b"\xff\x01"] {
            assert_eq!(parse(other), FromClient::Other);
        }
    }

    #[test]
    fn the_newest_common_protocol_wins() {
        assert_eq!(
            choose("v4.channel.k8s.io, v5.channel.k8s.io"),
            Some("v5.channel.k8s.io")
        );
        assert_eq!(choose("v4.channel.k8s.io"), Some("v4.channel.k8s.io"));
        assert_eq!(choose("channel.k8s.io"), None);
    }

    #[test]
    fn exit_codes_are_causes() {
        let text = end(Ok(7));
        assert_eq!(text[0], ERROR);
        let status: Value = serde_json::from_slice(&text[1..]).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "7");
    }
}
