//! Properties over any input: checksums, packets, flows there and back.

mod world;

use ebpf_common::abi::{Endpoint, FLOW_REPLY, FlowKey, TCP, UDP, bytes_of, event, from_bytes, v4};
use ebpf_common::maglev::{NOBODY, SIZE_DEFAULT, SIZES, Turn, fill, size_for};
use ebpf_common::nat::{Action, PORT_FIRST, PORTS, Work, egress, ingress};
use ebpf_common::packet::{ACK, FIN, Fragment, Kind, Packet, RST, SYN, parse};
use ebpf_common::resolve::within;
use ebpf_common::sum::{add_addr, add16, checksum, difference, fold, update};
use proptest::prelude::*;
use world::{World, client, frontend, node_v4, pod};

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, w| add16(sum, [w[0], w[1]]))
}

proptest! {
    /// A checksum that is updated is the checksum that would be computed anew.
    #[test]
    fn update_is_recomputation(
        mut data in proptest::collection::vec(any::<u8>(), 40..=40),
        new in proptest::array::uniform16(any::<u8>()),
        at in 0_usize..12,
    ) {
        let old_sum = checksum(&data, 0);
        let old = words(&data[at * 2..at * 2 + 16]);
        data[at * 2..at * 2 + 16].copy_from_slice(&new);
        let updated = update(old_sum, difference(old, words(&new)));
        let anew = checksum(&data, 0);
        // Zero has two representations in one's complement.
        let same = updated == anew || (updated, anew) == ([0xff; 2], [0; 2]) || (updated, anew) == ([0; 2], [0xff; 2]);
        prop_assert!(same, "{updated:?} {anew:?}");
    }

    #[test]
    fn addresses_sum_as_their_bytes(addr in proptest::array::uniform16(any::<u8>())) {
        prop_assert_eq!(fold(add_addr(0, &addr, false)), fold(words(&addr)));
        prop_assert_eq!(fold(add_addr(0, &addr, true)), fold(words(&addr[12..])));
    }

    /// Whatever comes, it is read or refused.
    #[test]
    fn any_bytes_are_read_without_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (mut outer, mut inner) = (Packet::default(), Packet::default());
        parse(data.as_slice(), &mut outer, &mut inner);
    }

    /// The same for what looks like a packet at first.
    #[test]
    fn broken_packets_are_read_without_panic(
        six in any::<bool>(),
        protocol in prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), Just(44), Just(0), Just(43), Just(60)],
        mut data in proptest::collection::vec(any::<u8>(), 34..160),
        cut in 0_usize..160,
    ) {
        let (kind, first, at) = if six { ([0x86, 0xdd], 0x60, 20) } else { ([8, 0], 0x45, 23) };
        data[12..14].copy_from_slice(&kind);
        data[14] = first;
        data[at] = protocol;
        data.truncate(cut.max(14));
        let (mut outer, mut inner) = (Packet::default(), Packet::default());
        if parse(data.as_slice(), &mut outer, &mut inner) == Kind::Transport {
            prop_assert!(outer.protocol == TCP || outer.protocol == UDP);
            prop_assert!(outer.fragment == Fragment::Later || outer.l4 + 4 <= data.len());
        }
    }

    #[test]
    fn within_is_a_comparison_of_bits(
        a in proptest::array::uniform16(any::<u8>()),
        b in proptest::array::uniform16(any::<u8>()),
        bits in 0_u32..=128,
    ) {
        let (x, y) = (u128::from_be_bytes(a), u128::from_be_bytes(b));
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
        prop_assert_eq!(within(&a, &b, bits), x & mask == y & mask);
        prop_assert!(within(&a, &a, bits));
    }

    #[test]
    fn values_survive_as_bytes(addr in proptest::array::uniform16(any::<u8>()), port in any::<[u8; 2]>()) {
        let endpoint = Endpoint::new(addr, port);
        prop_assert_eq!(from_bytes::<Endpoint>(bytes_of(&endpoint)), Some(endpoint));
        prop_assert_eq!(from_bytes::<Endpoint>(&bytes_of(&endpoint)[1..]), None);
    }

    /// There and back is the identity: the client sees its frontend answer, whatever the seed.
    #[test]
    fn a_reply_comes_from_where_the_client_sent_to(
        seed in any::<u32>(),
        masquerade in any::<bool>(),
        udp in any::<bool>(),
        port in 1024_u16..,
    ) {
        let world = World::new(seed, 5, masquerade);
        let protocol = if udp { UDP } else { TCP };
        let from = client(port);
        let trip = world.trip(&from, &frontend(), protocol, SYN).unwrap();
        prop_assert_eq!(trip.seen_by_client, frontend());
        if masquerade {
            prop_assert_eq!(trip.seen_by_pod.addr, node_v4());
            let seen = u32::from(u16::from_be_bytes(trip.seen_by_pod.port));
            prop_assert!((PORT_FIRST..PORT_FIRST + PORTS).contains(&seen));
        } else {
            prop_assert_eq!(trip.seen_by_pod, from);
        }
        // Every further packet goes the same way.
        let again = world.trip(&from, &frontend(), protocol, ACK).unwrap();
        prop_assert_eq!(trip, again);
    }
}

/// Hardly any place changes that was not the own one of the endpoint that goes, and all endpoints have
/// the same share.
#[test]
fn an_endpoint_that_goes_moves_its_own_clients_alone() {
    for count in [2_u8, 3, 5, 10, 20, 40, 80, 160] {
        let endpoints = usize::from(count);
        let size = size_for(0, endpoints);
        assert!(size as usize >= endpoints * 100);
        let named = |endpoints: &[Endpoint]| -> Vec<Endpoint> {
            let table = world::table(endpoints, size);
            table
                .into_iter()
                .map(|slot| endpoints[usize::from(slot)])
                .collect()
        };
        let (mut all, mut cases) = (0, 0);
        for salt in 0..4 {
            let with = |n| Endpoint::new(v4([10, salt, 7, n]), [31, 144]);
            let before: Vec<Endpoint> = (0..count).map(with).collect();
            let old = named(&before);
            for endpoint in &before {
                let share = old.iter().filter(|at| *at == endpoint).count() * endpoints;
                assert!(
                    share.abs_diff(size as usize) <= endpoints,
                    "{share} of {size}"
                );
            }
            for gone in (0..endpoints).step_by(endpoints.div_ceil(4)) {
                let mut after = before.clone();
                let lost = after.remove(gone);
                let new = named(&after);
                let pairs = old.iter().zip(&new);
                let moved = pairs
                    .filter(|(old, new)| **old != lost && old != new)
                    .count();
                assert!(
                    moved * 100 <= size as usize * 3,
                    "{moved} of {size} with {count}"
                );
                (all, cases) = (all + moved, cases + 1);
            }
        }
        let percent = 100.0 * f64::from(u32::try_from(all).unwrap()) / f64::from(size * cases);
        println!(
            "COUNTED places that changed beside an endpoint's own, of {size} with {count} endpoints: {percent:.2} %"
        );
        assert!(percent <= 2.0, "{percent} with {count}");
    }
}

proptest! {
    /// Any weights: shares follow them, and no place is nobody's.
    #[test]
    fn places_follow_weights(weights in proptest::collection::vec(0_u32..9, 1..20)) {
        let size = SIZES[4];
        let mut turns: Vec<Turn> = (0..).zip(&weights)
            .map(|(i, weight)| Turn::new(&pod(u8::try_from(i).unwrap_or(0)), i, *weight, size))
            .collect();
        let mut table = vec![0; size as usize];
        fill(&mut turns, &mut table);
        let sum: u32 = weights.iter().sum();
        for (slot, weight) in (0..).zip(&weights) {
            let places = table.iter().filter(|at| **at == slot).count();
            let share = if sum == 0 { 0 } else { size as usize * *weight as usize / sum as usize };
            prop_assert!(places.abs_diff(share) <= 1 + *weight as usize, "{places} for {share}");
        }
        let nobody = table.iter().filter(|at| **at == NOBODY).count();
        prop_assert_eq!(nobody, if sum == 0 { table.len() } else { 0 });
    }
}

#[test]
fn sizes_are_primes_and_one_has_a_place_for_each() {
    for size in SIZES {
        assert!(
            (2..).take_while(|n| n * n <= size).all(|n| size % n != 0),
            "{size}"
        );
    }
    assert_eq!(size_for(251, 0), 251);
    assert_eq!(size_for(251, 10), 4093);
    assert_eq!(size_for(251, 1000), SIZE_DEFAULT);
    assert_eq!(size_for(65_521, 10), 65_521);
    assert_eq!(size_for(SIZE_DEFAULT, 1_000_000), SIZES[9]);
}

/// Two nodes that have never heard of each other, one with other slots and another seed.
#[test]
fn every_node_sends_a_client_to_the_same_endpoint() {
    for (affinity, per_port) in [(0, true), (60, false)] {
        let mut nodes = [World::new(1, 5, true), World::new(99, 5, true)];
        nodes[0].hash(509, affinity);
        nodes[1].hash(509, affinity);
        let mut seen = std::collections::BTreeSet::new();
        for port in 2000..2200 {
            for protocol in [TCP, UDP] {
                let ask = |world: &World| {
                    world
                        .trip(&client(port), &frontend(), protocol, SYN)
                        .unwrap()
                        .endpoint
                };
                assert_eq!(ask(&nodes[0]), ask(&nodes[1]), "{port}");
                seen.insert((protocol, ask(&nodes[0])));
            }
        }
        assert_eq!(seen.len(), if per_port { 10 } else { 2 });
    }
}

#[test]
fn clients_never_share_a_masquerading_port() {
    let world = World::new(1, 1, true);
    let mut seen = std::collections::BTreeSet::new();
    for port in 1024..9000 {
        let trip = world.trip(&client(port), &frontend(), TCP, SYN).unwrap();
        assert!(seen.insert(trip.seen_by_pod), "{port}");
    }
}

#[test]
fn without_a_free_port_a_packet_is_dropped_and_a_finished_one_makes_room() {
    let world = World::new(1, 1, true);
    world.take_all_ports(&pod(0), TCP);
    let dropped = world.trip(&client(1), &frontend(), TCP, SYN);
    assert_eq!(dropped, Err(event::DROP_PORTS));
    // All of them have ended long ago.
    world.pass(ebpf_common::nat::TCP_TIMEOUT_NS + 1);
    assert!(world.trip(&client(1), &frontend(), TCP, SYN).is_ok());
}

#[test]
fn a_connection_that_nobody_answers_holds_its_port_for_minutes_only() {
    use ebpf_common::nat::{TCP_TIMEOUT_NS, UNANSWERED_TIMEOUT_NS};
    for (answered, time_out) in [(true, TCP_TIMEOUT_NS), (false, UNANSWERED_TIMEOUT_NS)] {
        let world = World::new(1, 1, true);
        world.take_all_ports(&pod(0), TCP);
        if answered {
            world.answer_all();
        }
        world.pass(time_out);
        let dropped = world.trip(&client(1), &frontend(), TCP, SYN);
        assert_eq!(dropped, Err(event::DROP_PORTS), "{answered}");
        world.pass(1);
        let trip = world.trip(&client(1), &frontend(), TCP, SYN);
        assert!(trip.is_ok(), "{answered}");
    }
}

#[test]
fn where_all_ports_are_taken_one_whose_connection_has_ended_is_used_again() {
    let world = World::new(1, 1, true);
    world.take_all_ports(&pod(0), TCP);
    world.end_all();
    world.pass(1000);
    let open = world.trip(&client(1), &frontend(), TCP, SYN).unwrap();
    for port in 1024..1500 {
        // Each ends, and its port may be the next one's; the open one keeps its own.
        let trip = world.trip(&client(port), &frontend(), TCP, SYN).unwrap();
        assert_ne!(trip.seen_by_pod, open.seen_by_pod);
        let end = world.trip(&client(port), &frontend(), TCP, FIN | ACK);
        assert_eq!(end, Ok(trip));
        world.pass(1000);
    }
    assert_eq!(world.trip(&client(1), &frontend(), TCP, ACK), Ok(open));
}

#[test]
fn a_full_table_of_flows_drops_new_connections_only() {
    let mut world = World::new(1, 1, true);
    let old = world.trip(&client(1), &frontend(), TCP, SYN).unwrap();
    world.full = true;
    let dropped = world.trip(&client(2), &frontend(), TCP, SYN);
    assert_eq!(dropped, Err(event::DROP_FLOWS));
    let again = world.trip(&client(1), &frontend(), TCP, ACK).unwrap();
    assert_eq!(old, again);
}

#[test]
fn two_frontends_of_one_endpoint_do_not_mix_up_a_clients_port() {
    // Without masquerade the endpoint would see the same client port twice.
    let world = World::new(7, 2, false);
    let other = world.also_at([172, 30, 0, 99], 80);
    let first = world.trip(&client(4000), &frontend(), TCP, SYN).unwrap();
    let second = world.trip(&client(4000), &other, TCP, SYN).unwrap();
    assert_eq!(
        (first.seen_by_client, second.seen_by_client),
        (frontend(), other)
    );
    // With only one endpoint there is no other way.
    let world = World::new(7, 1, false);
    let other = world.also_at([172, 30, 0, 99], 80);
    world.trip(&client(4000), &frontend(), TCP, SYN).unwrap();
    let second = world.trip(&client(4000), &other, TCP, SYN);
    assert_eq!(second, Err(event::DROP_COLLISION));
}

#[test]
fn a_new_connection_on_an_old_port_chooses_anew_only_when_the_old_has_ended() {
    let world = World::new(3, 1, false);
    let first = world.trip(&client(5000), &frontend(), TCP, SYN).unwrap();
    world.replace_endpoints(&[pod(9)]);
    // A SYN sent again belongs to the same connection.
    let again = world.trip(&client(5000), &frontend(), TCP, SYN).unwrap();
    assert_eq!(first, again);
    world
        .trip(&client(5000), &frontend(), TCP, FIN | ACK)
        .unwrap();
    let new = world.trip(&client(5000), &frontend(), TCP, SYN).unwrap();
    assert_eq!(new.endpoint, pod(9));
    // So does a reset.
    let world = World::new(3, 1, false);
    world.trip(&client(5000), &frontend(), TCP, SYN).unwrap();
    world.trip(&client(5000), &frontend(), TCP, RST).unwrap();
    world.replace_endpoints(&[pod(9)]);
    let new = world.trip(&client(5000), &frontend(), TCP, SYN).unwrap();
    assert_eq!(new.endpoint, pod(9));
}

#[test]
fn datagrams_follow_the_endpoints() {
    let world = World::new(3, 1, true);
    let first = world.trip(&client(5000), &frontend(), UDP, 0).unwrap();
    assert_eq!(first.endpoint, pod(0));
    world.replace_endpoints(&[pod(9)]);
    let new = world.trip(&client(5000), &frontend(), UDP, 0).unwrap();
    assert_eq!(new.endpoint, pod(9));
}

#[test]
fn who_is_refused_is_led_to_the_nodes_own_closed_port() {
    let world = World::new(3, 0, true);
    let mut work = Work::default();
    work.ask(&client(1), &frontend(), TCP);
    (work.tcp_flags, work.begins) = (SYN, true);
    assert_eq!(ingress(&world, &mut work), Action::Rewrite { new: false });
    assert_eq!(work.to, Endpoint::new(node_v4(), [0, 0]));
    // The reset comes back from the frontend.
    let mut back = Work::default();
    back.ask(&work.to, &client(1), TCP);
    (back.tcp_flags, back.begins) = (RST | ACK, true);
    assert_eq!(egress(&world, &mut back), Action::Rewrite { new: false });
    assert_eq!(back.to, frontend());
}

#[test]
fn errors_are_translated_both_ways_and_begin_nothing() {
    let world = World::new(3, 1, true);
    let trip = world.trip(&client(5000), &frontend(), UDP, 0).unwrap();
    // A router says that endpoint's packet to `node` cannot go on: it came from the node.
    let mut work = Work::default();
    work.ask(&trip.endpoint, &trip.seen_by_pod, UDP);
    assert_eq!(ingress(&world, &mut work), Action::Rewrite { new: false });
    assert_eq!(work.to, client(5000));
    // On its way out to the client the endpoint becomes the frontend.
    work.ask(&trip.endpoint, &client(5000), UDP);
    assert_eq!(egress(&world, &mut work), Action::Rewrite { new: false });
    assert_eq!(work.to, frontend());
    // About a flow that nobody knows.
    let before = world.count();
    work.ask(&client(77), &frontend(), UDP);
    assert_eq!(ingress(&world, &mut work), Action::Pass);
    assert_eq!(world.count(), before);
}

#[test]
fn strangers_pass() {
    let world = World::new(3, 1, true);
    let elsewhere = Endpoint::new(v4([8, 8, 8, 8]), [0, 53]);
    let mut work = Work::default();
    work.ask(&client(1), &elsewhere, UDP);
    work.begins = true;
    assert_eq!(ingress(&world, &mut work), Action::Pass);
    assert_eq!(egress(&world, &mut work), Action::Pass);
    let key = FlowKey {
        role: FLOW_REPLY,
        ..FlowKey::default()
    };
    assert_eq!((world.count(), world.has(&key)), (0, false));
}
