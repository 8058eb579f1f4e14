//! The API server as a service for clients in the same process: no socket, no TLS, same handlers.

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use http::{Request, Response};

use super::body::Body;
use crate::app::App;
use crate::auth::{MASTERS, Peer, User};

/// A kube client that calls the handlers directly, as `user` of group `system:masters`.
pub fn client(app: &Arc<App>, user: &str) -> kube::Client {
    let app = Arc::clone(app);
    let peer = Arc::new(Peer::Internal(User::new(user, vec![MASTERS.to_owned()])));
    let service = tower::service_fn(
        move |request: Request<kube::client::Body>| -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
            let (app, peer) = (Arc::clone(&app), Arc::clone(&peer));
            async move { Ok(app.handle(request, &peer).await) }.boxed()
        },
    );
    kube::Client::new(service, "default")
}
