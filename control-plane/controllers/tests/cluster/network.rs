//! The controllers as a client over the network, and through the API server's death.

use std::net::SocketAddr;
use std::path::Path;

use control_plane::server::Server;
use controllers::{CancellationToken, Config};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{Cluster, kubelet, options, wait_until, workload};

/// An API server without controllers, in a runtime of its own that can be dropped as a process is killed.
fn serve(data: &Path, bind: SocketAddr) -> (Runtime, SocketAddr) {
    let life = Runtime::new().unwrap();
    let mut options = options(data, "embedded");
    options.controllers = false;
    options.bind = vec![bind];
    let server = life.block_on(Server::start(options)).unwrap();
    (life, server.addresses[0])
}

async fn connect(data: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(data.join("admin.kubeconfig")).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

#[test]
fn over_the_network_and_through_the_death_of_the_server() {
    let data = tempfile::tempdir().unwrap();
    let (first, address) = serve(data.path(), "127.0.0.1:0".parse().unwrap());
    let here = Runtime::new().unwrap();
    let stop = CancellationToken::new();
    let cluster = here.block_on(async {
        let client = connect(data.path()).await;
        tokio::spawn(controllers::run(
            client.clone(),
            Config::default(),
            stop.clone(),
        ));
        tokio::spawn(kubelet::run(client.clone()));
        let cluster = Cluster {
            server: None,
            client,
            data: None,
        };
        for name in ["n1", "n2"] {
            kubelet::register(&cluster.client, name).await;
        }
        cluster.create::<Deployment>(workload("web", 2)).await;
        wait_until("two pods", async || cluster.available("web").await == 2).await;
        cluster
    });
    drop(first);
    let (_second, _) = serve(data.path(), address);
    here.block_on(async {
        cluster
            .patch::<Deployment>("web", json!({"spec": {"replicas": 4}}))
            .await;
        wait_until("four pods", async || cluster.available("web").await == 4).await;
        assert_eq!(cluster.places().await, ["n1", "n1", "n2", "n2"]);
        stop.cancel();
    });
}
