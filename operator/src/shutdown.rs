//! How a controller comes to its end.

use futures::FutureExt as _;
use kube::runtime::reflector::{Lookup, Store};
use tokio_util::sync::CancellationToken;

/// Waits for a controller that ends after `stop`.
///
/// One of kube's that is told to stop before its first list has arrived never does: it holds everything back
/// until its cache is full, and its watch, which has stopped, fills no cache. So it is dropped then: it has begun
/// nothing yet.
pub async fn ended<K>(controller: impl Future<Output = ()>, cache: Store<K>, stop: CancellationToken)
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    let never_began = async {
        stop.cancelled().await;
        if cache.wait_until_ready().now_or_never().is_some() {
            std::future::pending().await
        }
    };
    tokio::select! {
        () = controller => {}
        () = never_began => {}
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::time::Duration;

    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::controller::Action;
    use kube::runtime::{Controller, watcher};
    use kube::{Api, Client};
    use serde_json::json;
    use tokio::time::timeout;
    use tower::service_fn;

    use super::*;

    /// A controller whose API server answers, or does not.
    async fn run(answers: bool, stop: CancellationToken) {
        let service = service_fn(move |request: axum::http::Request<kube::client::Body>| async move {
            if !answers || request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                return std::future::pending::<Result<_, tower::BoxError>>().await;
            }
            let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "1"}, "items": []});
            Ok(axum::http::Response::new(axum::body::Body::from(list.to_string())))
        });
        let api: Api<ConfigMap> = Api::namespaced(Client::new(service, "default"), "default");
        let token = stop.clone();
        let controller = Controller::new(api, watcher::Config::default())
            .graceful_shutdown_on(async move { token.cancelled().await });
        let cache = controller.store();
        let reconcile = |_, _| async { Ok::<_, Infallible>(Action::await_change()) };
        let on_error = |_: Arc<ConfigMap>, _: &Infallible, _: Arc<()>| Action::await_change();
        let controller = controller.run(reconcile, on_error, Arc::new(()));
        ended(controller.for_each(|_| std::future::ready(())), cache, stop).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_ends_whether_its_first_list_has_arrived_or_not() {
        for answers in [true, false] {
            let stop = CancellationToken::new();
            let running = tokio::spawn(run(answers, stop.clone()));
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!running.is_finished());
            stop.cancel();
            timeout(Duration::from_secs(1), running).await.expect("it ends").expect("no panic");
        }
    }
}
