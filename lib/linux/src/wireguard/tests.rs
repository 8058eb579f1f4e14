//! The bytes of requests and answers, by hand from `linux/wireguard.h`.

use super::*;

fn peer() -> Peer {
    Peer {
        key: Key([1; 32]),
        psk: Some(Key([2; 32])),
        endpoint: Some("192.0.2.1:51820".parse().unwrap()),
        keepalive: 25,
        allowed: vec!["10.244.2.0/24".parse().unwrap()],
    }
}

/// Type, nesting mark and value of each attribute; lengths are checked on the way.
fn words(bytes: &[u8], depth: usize) -> String {
    let mut out = String::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(rest[..2].try_into().unwrap()));
        let kind = u16::from_ne_bytes(rest[2..4].try_into().unwrap());
        let value = &rest[4..length];
        let nested = kind & 0x8000 != 0;
        let pad = "  ".repeat(depth);
        if nested {
            out += &format!(
                "{pad}{} {{\n{}{pad}}}\n",
                kind & 0x3fff,
                words(value, depth + 1)
            );
        } else {
            out += &format!("{pad}{kind} {}\n", hex(value));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    if bytes.len() == 32 && bytes.iter().all(|b| *b == bytes[0]) {
        return format!("32 x {:02x}", bytes[0]);
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(target_endian = "little")]
#[test]
fn a_device_and_its_peers_as_bytes() {
    let config = Config {
        private: Key([7; 32]),
        port: 51820,
    };
    expect_test::expect![[r#"
        2 77673000
        3 32 x 07
        6 6cca
    "#]]
    .assert_eq(&words(&config_body("wg0", &config), 0));
    expect_test::expect![[r#"
        2 77673000
        8 {
          0 {
            1 32 x 01
            3 02000000
            2 32 x 02
            4 0200ca6cc00002010000000000000000
            5 1900
            9 {
              0 {
                1 0200
                2 0af40200
                3 18
              }
            }
          }
        }
    "#]]
    .assert_eq(&words(&peer_body("wg0", &peer()), 0));
    let v6 = Peer {
        psk: None,
        endpoint: Some("[2001:db8::1]:51821".parse().unwrap()),
        keepalive: 0,
        allowed: vec!["fd00:10:244:2::/64".parse().unwrap()],
        ..peer()
    };
    expect_test::expect![[r#"
        2 77673000
        8 {
          0 {
            1 32 x 01
            3 02000000
            2 32 x 00
            4 0a00ca6d0000000020010db800000000000000000000000100000000
            5 0000
            9 {
              0 {
                1 0a00
                2 fd000010024400020000000000000000
                3 40
              }
            }
          }
        }
    "#]]
    .assert_eq(&words(&peer_body("wg0", &v6), 0));
    expect_test::expect![[r#"
        2 77673000
        8 {
          0 {
            1 32 x 01
            3 01000000
          }
        }
    "#]]
    .assert_eq(&words(&removal_body("wg0", Key([1; 32])), 0));
}

#[test]
fn what_is_written_is_read() {
    let mut message = config_body(
        "wg0",
        &Config {
            private: Key([7; 32]),
            port: 51820,
        },
    );
    put(&mut message, DEVICE_PUBLIC_KEY, &[8; 32]);
    let mut device = Device::default();
    read_device(&message, &mut device);
    read_device(&peer_body("wg0", &peer()), &mut device);
    // The kernel goes on with a far end in the next message.
    let rest = Peer {
        allowed: vec!["fd00::/64".parse().unwrap()],
        ..peer()
    };
    read_device(&peer_body("wg0", &rest), &mut device);
    let whole = Peer {
        allowed: [peer().allowed, rest.allowed].concat(),
        ..peer()
    };
    let expect = Device {
        config: Config {
            private: Key([7; 32]),
            port: 51820,
        },
        public: Key([8; 32]),
        peers: vec![whole],
    };
    assert_eq!(device, expect);
}

#[test]
fn broken_answers_are_no_peers() {
    for length in 0..200_usize {
        let bytes: Vec<u8> = peer_body("wg0", &peer()).into_iter().take(length).collect();
        read_device(&bytes, &mut Device::default());
    }
}

#[test]
fn keys_as_text() {
    let key = Key([255; 32]);
    assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
    assert_eq!(key.to_string().len(), 44);
    assert!("".parse::<Key>().is_err() && "AAAA".parse::<Key>().is_err());
    assert_eq!(format!("{key:?}"), "Key(...)");
}
