//! Limiting the rate of a link: a token bucket on what leaves it (`tbf`), and a detour over an `ifb`
//! device for what comes in by it, since only what leaves a device can be held back.
//! Source: `linux/pkt_sched.h`, `linux/pkt_cls.h`.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as M;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use crate::error::Result;
use crate::mac::Mac;
use crate::netlink::Netlink;

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST` of `linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

/// `struct tc_tbf_qopt`: two `tc_ratespec` of 12 bytes, then limit, buffer, mtu.
const PARMS_BYTES: usize = 36;

/// The kernel counts scheduling time in ticks of 64 ns (`PSCHED_SHIFT` 6).
const NANOSECONDS_A_TICK: u128 = 64;

/// How long a packet may wait in the bucket; more is dropped.
const LATENCY_MICROSECONDS: u128 = 25_000;

/// `ETH_P_ALL` in network order, beside a filter's priority.
pub(crate) const PROTOCOL_ALL: u32 = 0x0003_u16.to_be() as u32;

/// The first filter of a link.
const PRIORITY: u32 = 1 << 16;

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenBucket {
    /// Bytes in a second.
    pub rate: u64,
    /// Bytes that may pass at once.
    pub burst: u32,
}

impl TokenBucket {
    /// Ticks that it takes to send the burst at the rate.
    fn ticks(self) -> u32 {
        let time = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1));
        u32::try_from(time / NANOSECONDS_A_TICK).unwrap_or(u32::MAX)
    }

    /// Bytes that wait at most.
    fn limit(self) -> u32 {
        let waiting = u128::from(self.rate) * LATENCY_MICROSECONDS / 1_000_000;
        u32::try_from(waiting + u128::from(self.burst)).unwrap_or(u32::MAX)
    }

    fn parms(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PARMS_BYTES);
        // cell_log, linklayer (ethernet: no table of rates is needed), overhead, cell_align, mpu
        out.extend([0, 1]);
        out.extend([0; 6]);
        out.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        out.extend([0; 12]);
        out.extend(self.limit().to_ne_bytes());
        out.extend(self.ticks().to_ne_bytes());
        out.extend(0_u32.to_ne_bytes());
        out
    }
}

/// Limits what leaves link number `index`.
pub(crate) fn set_token_bucket(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
    bucket: TokenBucket,
) -> Result<()> {
    let op = format_args!("limit {link} to {} bytes a second", bucket.rate);
    let message = M::NewQueueDiscipline(token_bucket(index, bucket));
    netlink.change(op, message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// The limit on what leaves link number `index`.
pub(crate) fn find_token_bucket(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
) -> Result<Option<TokenBucket>> {
    let op = format_args!("list queueing disciplines of {link}");
    let found = netlink.dump(op, &M::GetQueueDiscipline(list(index)))?;
    Ok(found.iter().find_map(|message| match message {
        M::NewQueueDiscipline(message) => parse(index, message),
        _ => None,
    }))
}

/// Sends what comes in by link number `index` through link number `to`.
pub(crate) fn add_detour(netlink: &mut Netlink, title: &str, index: u32, to: u32) -> Result<()> {
    let op = format_args!("{title}");
    let message = M::NewQueueDiscipline(ingress(index));
    netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)?;
    let message = M::NewTrafficFilter(detour(index, to));
    netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
}

/// The message that puts `bucket` on what leaves link `index`.
fn token_bucket(index: u32, bucket: TokenBucket) -> TcMessage {
    let mut options = vec![TcOption::Other(DefaultNla::new(
        TCA_TBF_PARMS,
        bucket.parms(),
    ))];
    if bucket.rate > u64::from(u32::MAX) {
        let rate = bucket.rate.to_ne_bytes().to_vec();
        options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate)));
    }
    let burst = bucket.burst.to_ne_bytes().to_vec();
    options.push(TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst)));
    let mut message = on(index, TcHandle::ROOT);
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
    message.attributes.push(TcAttribute::Options(options));
    message
}

/// The message that makes room for filters on what comes in by link `index`.
fn ingress(index: u32) -> TcMessage {
    let mut message = on(index, TcHandle::INGRESS);
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message
        .attributes
        .push(TcAttribute::Kind("ingress".to_owned()));
    message
}

/// The message that sends all that comes in by link `index` through link `to`.
fn detour(index: u32, to: u32) -> TcMessage {
    let parent = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    let mut message = on(index, parent);
    message.header.info = PRIORITY | PROTOCOL_ALL;
    // One key that any packet has: no bit of the first word is looked at.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let parms = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    // The first action; there is no other.
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![parms]),
    ];
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    message
}

/// The message that makes an `ifb` device, down.
pub(crate) fn create_ifb(name: &str, mac: Mac, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.extend([
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ]);
    message
}

/// The message that lists the queueing disciplines of link `index`.
fn list(index: u32) -> TcMessage {
    on(index, TcHandle::UNSPEC)
}

/// Reads a token bucket on what leaves link `index`; `None` for any other discipline.
fn parse(index: u32, message: &TcMessage) -> Option<TokenBucket> {
    if u32::try_from(message.header.index).ok() != Some(index) {
        return None;
    }
    let mut kind = None;
    let mut options = None;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = Some(name.as_str()),
            TcAttribute::Options(all) => options = all.first(),
            _ => {}
        }
    }
    let (Some("tbf"), Some(TcOption::Other(nested))) = (kind, options) else {
        return None;
    };
    let mut value = vec![0; netlink_packet_core::Nla::value_len(nested)];
    netlink_packet_core::Nla::emit_value(nested, &mut value);
    let parms = crate::nfnetlink::attribute(&value, TCA_TBF_PARMS)?;
    let word = |at: usize| -> Option<u32> {
        let bytes = parms.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let rate64 = crate::nfnetlink::attribute(&value, TCA_TBF_RATE64)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_ne_bytes);
    let rate = rate64.or(word(8).map(u64::from))?;
    // The kernel shows the time that the burst takes, not the burst.
    let nanoseconds = u128::from(word(28)?) * NANOSECONDS_A_TICK;
    let burst = nanoseconds * u128::from(rate) / 1_000_000_000;
    Some(TokenBucket {
        rate,
        burst: u32::try_from(burst).unwrap_or(u32::MAX),
    })
}

pub(crate) fn on(index: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or(i32::MAX);
    message.header.parent = parent;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_its_time_and_the_rest_waits() {
        // 1 MB/s, 10 000 bytes at once: 10 ms, and 25 ms worth of bytes may wait.
        let bucket = TokenBucket {
            rate: 1_000_000,
            burst: 10_000,
        };
        assert_eq!(bucket.ticks(), 156_250);
        assert_eq!(bucket.limit(), 35_000);
        assert_eq!(bucket.parms().len(), PARMS_BYTES);
        let most = TokenBucket {
            rate: u64::MAX,
            burst: u32::MAX,
        };
        assert_eq!(most.limit(), u32::MAX);
        let least = TokenBucket { rate: 0, burst: 1 };
        assert_eq!(least.ticks(), 15_625_000);
    }
}
