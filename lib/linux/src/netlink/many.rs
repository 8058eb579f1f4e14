//! Many changes in one message to the kernel: it works them off in order, says which it refused, and
//! acknowledges the last. A change then costs what the kernel does for it, without two calls of its own.

use std::fmt;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;

use super::{Datagram, Netlink};
use crate::error::{Error, Result};

/// Changes in one message. All may be refused, and the refusals (less than 1 KiB each, as the kernel
/// counts) have to fit into the socket's receive buffer, 208 KiB as a rule.
const AT_ONCE: usize = 100;

impl Netlink {
    /// Makes changes in order, whether or not others are refused; gives the positions of those that
    /// are. The flags are those of the change.
    ///
    /// # Errors
    /// The kernel cannot be asked; some may be made.
    pub fn change_many(
        &mut self,
        op: fmt::Arguments<'_>,
        changes: Vec<(RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<usize>> {
        let mut refused = Vec::new();
        let mut at = 0;
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut count = 0;
            while count < AT_ONCE
                && let Some((message, flags)) = changes.next()
            {
                self.sequence = self.sequence.wrapping_add(1);
                count += 1;
                let last = count == AT_ONCE || changes.peek().is_none();
                let mut packet = NetlinkMessage::from(message);
                packet.header.flags = NLM_F_REQUEST | flags | if last { NLM_F_ACK } else { 0 };
                packet.header.sequence_number = self.sequence;
                packet.finalize();
                let start = bytes.len();
                bytes.resize(start + packet.buffer_len().next_multiple_of(4), 0);
                packet.serialize(&mut bytes[start..start + packet.buffer_len()]);
            }
            self.socket
                .send(&bytes, 0)
                .map_err(|e| Error::new(op.to_string(), e).with_detail("sending"))?;
            while !self.hear_of_many(op, first, count, |one| refused.push(at + one))? {}
            at += count;
        }
        Ok(refused)
    }

    /// Receives once; true when the last of `count` changes was answered. `refused` is told which of
    /// them the kernel does not make.
    fn hear_of_many(
        &mut self,
        op: fmt::Arguments<'_>,
        first: u32,
        count: usize,
        mut refused: impl FnMut(usize),
    ) -> Result<bool> {
        self.fill(op)?;
        let mut last = false;
        for bytes in Datagram(&self.buffer) {
            let sequence = NetlinkBuffer::new(bytes).sequence_number();
            let Some(one) = usize::try_from(sequence.wrapping_sub(first))
                .ok()
                .filter(|one| *one < count)
            else {
                continue;
            };
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
            let answer = message.map(|message| message.payload);
            if let Ok(NetlinkPayload::Error(error)) = answer {
                if error.code.is_some() {
                    refused(one);
                }
                last |= one + 1 == count;
            }
        }
        Ok(last)
    }
}
