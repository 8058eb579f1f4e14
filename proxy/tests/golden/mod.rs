//! Golden output of the tables: what each case of a file is planned to be in the kernel by each mode, in
//! IPv4, and what goes from one to the next. `UPDATE_EXPECT=1 cargo test -p proxy --test conformance` makes the
//! files anew.

mod ebpf;
mod ipvs;

use std::collections::BTreeSet;
use std::path::PathBuf;

use api::cidr::Family;
use expect_test::expect_file;
use proxy::backend::nftables::dump::write_items;
use proxy::backend::{Settings, iptables, nftables};
use proxy::model::Decisions;
use proxy::trace::World;

use crate::cases::{self, File};
use crate::plan;

fn check(mode: &str, name: &str, text: &str) {
    let file = format!("{mode}/{name}.txt");
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    expect_file![path.join(file)].assert_eq(text);
}

/// The first case as a whole, of the others the lines by which they differ from it.
fn of_file(file: &File, show: impl Fn(&Settings, &Decisions, &World) -> String) -> String {
    let mut text = String::new();
    let mut first: Option<String> = None;
    for case in &file.cases {
        let Some(setting) = file.setting(case, Family::V4) else {
            continue;
        };
        let (settings, decisions, world) = plan(file, case, &setting, Family::V4);
        let shown = show(&settings, &decisions, &world);
        text.push_str(&format!("## {}\n", case.name));
        match &first {
            None => text.push_str(&shown),
            Some(first) => text.push_str(&differences(first, &shown)),
        }
        first.get_or_insert(shown);
    }
    short(&text)
}

/// Lines next to each other that differ in nothing but numbers, from this many on, are the first and
/// the last of them, and how many they are.
const ALIKE_MIN: usize = 500;

fn short(text: &str) -> String {
    let is_digit = |c: char| c.is_ascii_digit();
    let shape = |line: &str| -> Vec<String> {
        let words = line.split(is_digit).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut short = String::new();
    for alike in lines.chunk_by(|a, b| shape(a) == shape(b)) {
        match alike {
            [first, .., last] if alike.len() >= ALIKE_MIN => {
                let between = alike.len() - 2;
                short.push_str(&format!("{first}\n... {between} lines alike ...\n{last}\n"));
            }
            all => all
                .iter()
                .for_each(|line| short.push_str(&format!("{line}\n"))),
        }
    }
    short
}

/// Lines that are in one of them only.
fn differences(first: &str, second: &str) -> String {
    let lines = |text: &'static str, of: &str, other: &str| {
        let known: BTreeSet<&str> = other.lines().collect();
        let own = of.lines().filter(|line| !known.contains(line));
        own.map(|line| format!("{text}{line}\n"))
            .collect::<String>()
    };
    lines("- ", first, second) + &lines("+ ", second, first)
}

fn iptables_plan(settings: &Settings, decisions: &Decisions, _: &World) -> String {
    iptables::desired::Desired::with(settings.clone(), decisions).to_string()
}

/// Elements only: the chains are the same for all services, and in a golden file of their own.
fn nftables_plan(settings: &Settings, decisions: &Decisions, _: &World) -> String {
    let desired = nftables::desired::Desired::with(settings.clone(), decisions);
    let mut text = String::new();
    write_items(&mut text, &desired.contents(), &desired).unwrap();
    text
}

#[test]
fn golden_plans() {
    for (name, file) in cases::files(Family::V4) {
        check("iptables", &name, &of_file(&file, iptables_plan));
        check("nftables", &name, &of_file(&file, nftables_plan));
        let ipvs = |settings: &Settings, decisions: &Decisions, world: &World| {
            ipvs::plan(settings, decisions, &world.local)
        };
        check("ipvs", &name, &of_file(&file, ipvs));
        let ebpf =
            |settings: &Settings, decisions: &Decisions, _: &World| ebpf::plan(settings, decisions);
        check("ebpf", &name, &of_file(&file, ebpf));
    }
}

/// What changes between two cases.
fn steps(
    file: &File,
    settings: &Settings,
    mut step: impl FnMut(&Decisions, &Decisions) -> String,
) -> String {
    let mut text = String::new();
    let mut before = Decisions::default();
    for case in &file.cases {
        let setting = file.setting(case, Family::V4).unwrap();
        let (of_case, decisions, _) = plan(file, case, &setting, Family::V4);
        assert_eq!(of_case, *settings, "{}", case.name);
        text.push_str(&format!("## {}\n", case.name));
        text.push_str(&step(&before, &decisions));
        before = decisions;
    }
    text
}

/// Table T12: one change after the other writes what it changes.
#[test]
fn golden_changes() {
    let files = cases::files(Family::V4);
    let (_, file) = files
        .iter()
        .find(|(name, _)| name == "t12-changes")
        .unwrap();
    let setting = file.setting(&file.cases[0], Family::V4).unwrap();
    let (settings, _, world) = plan(file, &file.cases[0], &setting, Family::V4);

    let mut desired = iptables::desired::Desired::new(settings.clone());
    let text = steps(file, &settings, |before, after| {
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            desired.set(name, None);
        }
        for (name, decision) in after {
            desired.set(name, Some(decision));
        }
        let touched = desired.take_touched();
        let written = touched
            .iter()
            .filter_map(|(chain, rules)| Some((chain, rules.as_deref()?)));
        let mut text = iptables::render::listing(written, &[]);
        for (chain, _) in touched.iter().filter(|(_, rules)| rules.is_none()) {
            text.push_str(&format!("-X {} {}\n", chain.table.name(), chain.name));
        }
        text
    });
    check("iptables", "changes", &text);

    let mut desired = nftables::desired::Desired::new(settings.clone());
    let text = steps(file, &settings, |before, after| {
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            desired.set(name, None);
        }
        for (name, decision) in after {
            desired.set(name, Some(decision));
        }
        let change = desired.take_change();
        let mut text = String::new();
        for (word, items) in [("add", &change.add), ("delete", &change.delete)] {
            if !items.is_empty() {
                text.push_str(&format!("{word}\n"));
                write_items(&mut text, items, &desired).unwrap();
            }
        }
        text
    });
    check("nftables", "changes", &text);

    let mut changes = ipvs::Changes::new(&settings, &world.local);
    let text = steps(file, &settings, |before, after| changes.step(before, after));
    check("ipvs", "changes", &text);

    let mut changes = ebpf::Changes::new(&settings);
    let text = steps(file, &settings, |before, after| changes.step(before, after));
    check("ebpf", "changes", &text);
}
