//! From a question to records. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::zone::{Found, TTL, Target, Zone};

/// The version of the specification, at `dns-version`.
const VERSION: &str = "1.1.0";

/// How many names an alias may lead through within the zone.
const ALIASES_MAX: usize = 8;

/// How many targets of one answer get their addresses told beside it.
const TARGETS_TOLD_MAX: usize = 64;

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// This is all of it.
    Ours(Reply),
    /// These aliases lead out of the zone to this name: whoever knows it has the rest.
    Elsewhere(Reply, Name),
    /// The name is none of ours.
    NotOurs,
}

/// The records of an answer of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Whether the name exists.
    pub code: ResponseCode,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// The zone's SOA, when there is nothing to answer.
    pub authorities: Vec<Record>,
    /// What will be asked for next.
    pub additionals: Vec<Record>,
}

impl Reply {
    /// Only a code.
    pub fn code(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

impl Zone {
    /// Answers the question for records of `kind` at `name`. `turn` is another number for each
    /// question, by which equal answers take turns in being the first.
    pub fn answer(&self, name: &Name, kind: RecordType, turn: usize) -> Answer {
        if let Some(answer) = self.answer_reverse(name, kind, turn) {
            return answer;
        }
        if !self.domain.zone_of(name) {
            return Answer::NotOurs;
        }
        if !self.is_ready() {
            return Answer::Ours(Reply::code(ResponseCode::ServFail));
        }
        let mut reply = Reply::code(ResponseCode::NoError);
        let mut name = name.clone();
        for _ in 0..ALIASES_MAX {
            let labels = self.labels_below(&name);
            let labels: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
            let Found::Alias(target) = self.find(&labels) else {
                self.answer_here(&name, &labels, kind, turn, &mut reply);
                return Answer::Ours(reply);
            };
            reply
                .answers
                .push(record(&name, RData::CNAME(CNAME(target.clone()))));
            if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                return Answer::Ours(reply);
            }
            if !self.domain.zone_of(target) {
                return Answer::Elsewhere(reply, target.clone());
            }
            name = target.clone();
        }
        // Aliases in a circle.
        Answer::Ours(Reply::code(ResponseCode::ServFail))
    }

    /// Names of addresses. Those that are not known may be known upstream.
    fn answer_reverse(&self, name: &Name, kind: RecordType, turn: usize) -> Option<Answer> {
        let ip = reverse_address(name)?;
        let names = self.names_of(ip);
        if names.is_empty() {
            return None;
        }
        let mut reply = Reply::code(ResponseCode::NoError);
        if matches!(kind, RecordType::PTR | RecordType::ANY) {
            let pointers = names
                .into_iter()
                .map(|to| record(name, RData::PTR(PTR(to))));
            reply.answers.extend(pointers);
            rotate(&mut reply.answers, turn);
        }
        Some(Answer::Ours(reply))
    }

    /// Fills in what stands at a name that is no alias.
    fn answer_here(
        &self,
        name: &Name,
        labels: &[&str],
        kind: RecordType,
        turn: usize,
        reply: &mut Reply,
    ) {
        let before = reply.answers.len();
        let wanted = |this| kind == this || kind == RecordType::ANY;
        match self.find(labels) {
            Found::Nothing => reply.code = ResponseCode::NXDomain,
            Found::Between | Found::Alias(_) => {}
            Found::Apex => self.answer_apex(&wanted, reply),
            Found::Version => {
                if wanted(RecordType::TXT) {
                    let text = TXT::new(vec![VERSION.to_owned()]);
                    reply.answers.push(record(name, RData::TXT(text)));
                }
            }
            Found::Addresses(ips) => {
                let found = ips.into_iter().map(address);
                let wanted = found.filter(|data| wanted(data.record_type()));
                reply.answers.extend(wanted.map(|data| record(name, data)));
            }
            Found::Ports(namespace, service, targets) => {
                if wanted(RecordType::SRV) {
                    self.answer_ports(name, namespace, service, targets, reply);
                }
            }
        }
        if let Some(own) = reply.answers.get_mut(before..)
            && !own.is_empty()
        {
            rotate(own, turn);
        } else {
            reply.authorities.push(self.soa());
        }
    }

    fn answer_apex(&self, wanted: &dyn Fn(RecordType) -> bool, reply: &mut Reply) {
        if wanted(RecordType::SOA) {
            reply.answers.push(self.soa());
        }
        if wanted(RecordType::NS) {
            let server = self.server_name();
            let data = RData::NS(NS(server.clone()));
            reply.answers.push(record(&self.domain, data));
            let ips = self
                .addresses
                .iter()
                .map(|ip| record(&server, address(*ip)));
            reply.additionals.extend(ips);
        }
    }

    fn answer_ports(
        &self,
        name: &Name,
        namespace: &str,
        service: &str,
        targets: &BTreeSet<Target>,
        reply: &mut Reply,
    ) {
        let entry = self.entry(namespace, service);
        for (told, target) in targets.iter().enumerate() {
            let label = target.label.as_deref();
            let Some(host) = self.name(namespace, service, label) else {
                continue;
            };
            // Priority and weight mean nothing here: all are equal.
            let data = SRV::new(0, 100, target.port, host.clone());
            reply.answers.push(record(name, RData::SRV(data)));
            if told < TARGETS_TOLD_MAX {
                let ips = entry
                    .map(|entry| entry.addresses(label))
                    .unwrap_or_default();
                let ips = ips.into_iter().map(|ip| record(&host, address(ip)));
                reply.additionals.extend(ips);
            }
        }
    }

    /// The labels of `name` below the zone, in lower case. Octets that are no text match nothing.
    fn labels_below(&self, name: &Name) -> Vec<String> {
        let own = name.iter().count() - self.domain.iter().count();
        let lower = |label: &[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
        name.iter().take(own).map(lower).collect()
    }

    fn server_name(&self) -> Name {
        self.below_domain(&["ns", "dns"])
    }

    fn below_domain(&self, labels: &[&str]) -> Name {
        let labels = labels.iter().map(|label| label.as_bytes());
        Name::from_labels(labels.chain(self.domain.iter())).unwrap_or_else(|_| self.domain.clone())
    }

    fn soa(&self) -> Record {
        // Nobody transfers this zone; only the last number, the time for which it may be remembered
        // that a name is not there, means something.
        let (refresh, retry, expire) = (7200, 1800, 86400);
        let data = SOA::new(
            self.server_name(),
            self.below_domain(&["hostmaster"]),
            self.serial(),
            refresh,
            retry,
            expire,
            TTL,
        );
        record(&self.domain, RData::SOA(data))
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// Another one first each turn.
fn rotate(records: &mut [Record], turn: usize) {
    if !records.is_empty() {
        let by = turn % records.len();
        records.rotate_left(by);
    }
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let (labels, kind) = match labels.as_slice() {
        [rest @ .., kind, arpa] if arpa.eq_ignore_ascii_case(b"arpa") => (rest, kind),
        _ => return None,
    };
    let texts = labels
        .iter()
        .rev()
        .map(|label| std::str::from_utf8(label).ok());
    if kind.eq_ignore_ascii_case(b"in-addr") && labels.len() == 4 {
        let mut octets = [0; 4];
        for (octet, text) in octets.iter_mut().zip(texts) {
            *octet = text?.parse().ok()?;
        }
        return Some(octets.into());
    }
    if kind.eq_ignore_ascii_case(b"ip6") && labels.len() == 32 {
        let mut number = 0_u128;
        for text in texts {
            let text = text.filter(|text| text.len() == 1)?;
            number = number << 4 | u128::from_str_radix(text, 16).ok()?;
        }
        return Some(IpAddr::V6(number.into()));
    }
    None
}
