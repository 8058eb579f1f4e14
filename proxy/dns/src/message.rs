//! Questions out of packets, and answers into packets. Pure.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;

use crate::answer::Reply;

/// The largest UDP answer: what fits the IPv6 minimum MTU, so that no answer is ever fragmented (DNS
/// Flag Day 2020).
pub(crate) const UDP_BYTES_MAX: u16 = 1232;

/// The largest UDP answer to someone who does not say what they take (RFC 1035).
const UDP_BYTES_MIN: u16 = 512;

/// A question that can be answered.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Identity and flags of the question.
    pub(crate) head: Metadata,
    /// The one question.
    pub(crate) query: Query,
    /// The client's extension, where it has one.
    pub(crate) edns: Option<Edns>,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A question.
    Request(Box<Request>),
    /// Something that gets this answer.
    Refusal(Vec<u8>, ResponseCode),
    /// Something that gets no answer: an answer, or too little to answer to.
    Nothing,
}

/// Reads a packet.
pub(crate) fn read(bytes: &[u8]) -> Incoming {
    let [id0, id1, flags, _, qd0, qd1, _, _, _, _, _, _, ..] = bytes else {
        return Incoming::Nothing;
    };
    let is_answer = flags & 0x80 != 0;
    if is_answer {
        return Incoming::Nothing;
    }
    let id = u16::from_be_bytes([*id0, *id1]);
    let op_code = OpCode::from_u8((flags >> 3) & 0xf);
    if op_code != OpCode::Query {
        return refusal(id, op_code, ResponseCode::NotImp);
    }
    if u16::from_be_bytes([*qd0, *qd1]) != 1 {
        return refusal(id, op_code, ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        return refusal(id, op_code, ResponseCode::FormErr);
    };
    let Some(query) = message.queries.pop() else {
        return refusal(id, op_code, ResponseCode::FormErr);
    };
    let request = Request {
        head: message.metadata,
        query,
        edns: message.edns,
    };
    if request
        .edns
        .as_ref()
        .is_some_and(|edns| edns.version() != 0)
    {
        return request.refuse(ResponseCode::BADVERS);
    }
    if request.query.query_class() != DNSClass::IN {
        return request.refuse(ResponseCode::Refused);
    }
    Incoming::Request(Box::new(request))
}

fn refusal(id: u16, op_code: OpCode, code: ResponseCode) -> Incoming {
    match Message::error_msg(id, op_code, code).to_vec() {
        Ok(bytes) => Incoming::Refusal(bytes, code),
        Err(_) => Incoming::Nothing,
    }
}

impl Request {
    fn refuse(&self, code: ResponseCode) -> Incoming {
        match self.write(Reply::code(code), false, usize::from(UDP_BYTES_MIN)) {
            Some((bytes, _)) => Incoming::Refusal(bytes, code),
            None => Incoming::Nothing,
        }
    }

    /// How large a UDP answer may be.
    pub(crate) fn udp_bytes_max(&self) -> usize {
        let wanted = self.edns.as_ref().map_or(UDP_BYTES_MIN, Edns::max_payload);
        usize::from(wanted.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX))
    }

    /// Writes an answer of at most `limit` bytes; tells whether records had to be left out that
    /// matter. `recursive`: other names could have been asked for, too.
    pub(crate) fn write(
        &self,
        reply: Reply,
        recursive: bool,
        limit: usize,
    ) -> Option<(Vec<u8>, bool)> {
        let mut message = Message::new(self.head.id, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.head);
        message.metadata.recursion_available = recursive;
        message.metadata.response_code = reply.code;
        // That a name outside of the zone does not exist is not ours to know.
        message.metadata.authoritative = match reply.code {
            ResponseCode::NoError => true,
            ResponseCode::NXDomain => !reply.authorities.is_empty(),
            _ => false,
        };
        message.add_query(self.query.clone());
        message.answers = reply.answers;
        message.authorities = reply.authorities;
        message.additionals = reply.additionals;
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            message.edns = Some(edns);
        }
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some((bytes, false));
        }
        // What was not asked for goes first, and nobody misses it.
        message.additionals.clear();
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some((bytes, false));
        }
        // As many as fit: some resolvers never come back by TCP.
        message.metadata.truncation = true;
        message.authorities.clear();
        let all = std::mem::take(&mut message.answers);
        let (mut fit, mut too_many) = (0, all.len());
        let mut best = message.to_vec().ok().filter(|bytes| bytes.len() <= limit)?;
        while too_many - fit > 1 {
            let middle = fit.midpoint(too_many);
            message.answers = all.get(..middle).unwrap_or_default().to_vec();
            let bytes = message.to_vec().ok()?;
            if bytes.len() <= limit {
                (fit, best) = (middle, bytes);
            } else {
                too_many = middle;
            }
        }
        Some((best, true))
    }
}
