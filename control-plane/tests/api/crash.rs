//! The program itself, killed in the middle of writing, and many writers under one watch.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::common::{Lab, PATIENCE, call, lab};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A started `control-plane run`, killed when it goes out of scope.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A port that is free, and given to nobody who asks for any: it must be free again after a kill.
fn free_port() -> u16 {
    let first = 10_000 + std::process::id() % 10_000;
    let mut ports = (first..first + 10_000).filter_map(|port| u16::try_from(port).ok());
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(is_free).unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program must be killed, not waited for"
)]
fn run(dir: &Path, port: u16) -> Program {
    let child = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .arg("run")
        .arg("--data-dir")
        .arg(dir)
        .args([
            "--bind",
            &format!("127.0.0.1:{port}"),
            "--advertise-address",
            "127.0.0.1",
        ])
        .args(["--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Program(child)
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "what the program prints when it fails is what is tested"
)]
fn a_range_without_addresses_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for (flag, range) in [
        ("--service-cidr", "10.0.0.0"),
        ("--cluster-cidr", "fd00::/127"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_control-plane"))
            .arg("run")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--advertise-address", "127.0.0.1", flag, range])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(flag), "{told}");
    }
}

/// A client for the program once it answers.
async fn ready(dir: &Path) -> kube::Client {
    let deadline = Instant::now() + PATIENCE;
    let path = dir.join("admin.kubeconfig");
    loop {
        if let Ok(config) = kube::config::Kubeconfig::read_from(&path) {
            let options = kube::config::KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(config, &options)
                .await
                .unwrap();
            let client = kube::Client::try_from(config).unwrap();
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            if client.request_text(request).await.is_ok() {
                return client;
            }
        }
        assert!(Instant::now() < deadline, "the server did not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_time_the_program_keeps_its_word() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut promised: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..3 {
        let program = run(dir.path(), port);
        let client = ready(dir.path()).await;
        let (_, list) = call(&client, Method::GET, CONFIGMAPS, "", Value::Null).await;
        for (name, value) in &promised {
            let items = list["items"].as_array().unwrap();
            let found = items.iter().find(|item| item["metadata"]["name"] == **name);
            let found = found.unwrap_or_else(|| panic!("{name} is lost"));
            assert_eq!(found["data"]["v"], **value, "{name}");
        }
        let dead = Arc::new(AtomicBool::new(false));
        let writers = (0..6).map(|writer| {
            let (client, dead) = (client.clone(), Arc::clone(&dead));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0..10_000 {
                    let (name, value) = (format!("c{round}-{writer}-{n}"), n.to_string());
                    let body = json!({"metadata": {"name": name}, "data": {"v": value}});
                    let request = http::Request::post(CONFIGMAPS)
                        .header("content-type", "application/json")
                        .body(body.to_string().into_bytes())
                        .unwrap();
                    match client.request_text(request).await {
                        Ok(_) => acknowledged.push((name, value)),
                        Err(_) if dead.load(Ordering::SeqCst) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                acknowledged
            })
        });
        let writers: Vec<_> = writers.collect();
        let count = || async {
            let (_, list) = call(&client, Method::GET, CONFIGMAPS, "", Value::Null).await;
            list["items"].as_array().unwrap().len()
        };
        let enough = promised.len() + 40 + 13 * round;
        while count().await < enough {}
        dead.store(true, Ordering::SeqCst);
        drop(program);
        for writer in join_all(writers).await {
            promised.extend(writer.unwrap());
        }
    }
    assert!(promised.len() > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_and_its_watch_give_the_later_list() {
    let lab = lab().await;
    let relevant = |list: &Value| -> BTreeMap<String, String> {
        let items = list["items"].as_array().unwrap().iter();
        let pair = |item: &Value| {
            let text = |pointer: &str| item.pointer(pointer).unwrap().as_str().unwrap().to_owned();
            (text("/metadata/name"), text("/metadata/resourceVersion"))
        };
        items.map(pair).collect()
    };
    let query = "labelSelector=l%3Dyes";
    write_about(&lab, 0).await;
    let (_, first) = lab.get(&format!("{CONFIGMAPS}?{query}")).await;
    let from = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = lab
        .watch(&format!(
            "{CONFIGMAPS}?watch=true&{query}&resourceVersion={from}"
        ))
        .await;
    join_all((1..5).map(|seed| write_about(&lab, seed))).await;
    let end = json!({"metadata": {"name": "end", "labels": {"l": "yes"}}});
    lab.server_call("POST", CONFIGMAPS, end).await;
    let (_, last) = lab.get(&format!("{CONFIGMAPS}?{query}")).await;
    let mut state = relevant(&first);
    loop {
        let event = watch.next().await.unwrap();
        let metadata = &event["object"]["metadata"];
        let name = metadata["name"].as_str().unwrap().to_owned();
        let version = metadata["resourceVersion"].as_str().unwrap().to_owned();
        let known = state.contains_key(&name);
        let kind = event["type"].as_str().unwrap().to_owned();
        assert_eq!(kind == "ADDED", !known, "{kind} {name}");
        match kind.as_str() {
            "DELETED" => state.remove(&name),
            _ => state.insert(name.clone(), version),
        };
        if name == "end" {
            break;
        }
    }
    assert_eq!(state, relevant(&last));
}

/// Creates, relabels and deletes a few objects in an order that the seed decides.
async fn write_about(lab: &Lab, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    for _ in 0..120 {
        // xorshift64 (Marsaglia 2003): the same order in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let name = format!("x{}", state % 7);
        let label = if state.is_multiple_of(3) { "no" } else { "yes" };
        let path = format!("{CONFIGMAPS}/{name}");
        match (state >> 8) % 4 {
            0 => lab.server_call("DELETE", path, Value::Null).await,
            1 => {
                let patch = json!({"metadata": {"labels": {"l": label}}});
                lab.server_call("PATCH", path, patch).await
            }
            _ => {
                let body = json!({"metadata": {"name": name, "labels": {"l": label}}});
                lab.server_call("POST", CONFIGMAPS, body).await
            }
        };
    }
}
