//! The page of the document is served with all that it needs, and nothing of it runs what it should not.

use crate::network::Api;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_needs_nothing_from_elsewhere_and_may_do_nothing_else() {
    let api = Api::without_signers().await;
    let mut served = String::new();
    for (path, content_type) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/page.css", "text/css; charset=utf-8"),
        ("/docs/page.js", "text/javascript; charset=utf-8"),
        ("/openapi.json", "application/json"),
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), content_type, "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        let policy = header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        if path != "/openapi.json" {
            served += &answer.text().await.unwrap();
        }
    }
    // Neither scripts nor styles within the page: its policy would not run them. Nothing from another server.
    for forbidden in ["http:", "https:", "\"//", "<style", "style=", " onclick", "innerHTML", "eval("] {
        assert!(!served.contains(forbidden), "{forbidden}");
    }
    assert_eq!(served.matches("<script ").count(), 1);
    assert_eq!(api.get("/docs/page.html").await.status(), 404);
    api.stop().await;
}
