//! The pages that a manager serves, in a browser: the console, and the one of the API's document.
//!
//! Pictures of it are in `target/tmp/console` afterwards: what it looks like, only people can tell.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::time::Duration;

use serde_json::Value;

mod browser;
mod network;
#[path = "../support/tokens.rs"]
mod tokens;

use browser::{Browser, DOWN, ENTER, ESCAPE, LEFT, TAB, in_browser};
use network::Network;
use tokens::{ask_for_tokens, claims, token};

/// How long what must happen may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(60);

/// An id that no request has.
const NOBODYS: &str = "550e8400-e29b-41d4-a716-446655440000";

/// The page, once it shows how things are.
async fn open(browser: &Browser, url: &str) {
    browser.open(&format!("{url}/console")).await;
    browser.until("!document.querySelector('#picture').hidden").await;
}

async fn assert_no_sideways_scroll(browser: &Browser) {
    let wide = browser
        .run("return [...document.querySelectorAll('html, dialog[open]')].map((part) => part.scrollWidth - innerWidth)")
        .await;
    for over in wide.as_array().unwrap() {
        assert!(over.as_i64().unwrap() <= 0, "{over} pixels too wide");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_files_come_with_their_types_and_a_policy_that_forbids_all_others() {
    let network = Network::start().await;
    let http = reqwest::Client::new();
    for (path, content_type) in [
        ("/console", "text/html; charset=utf-8"),
        // It leads to the page.
        ("/console/", "text/html; charset=utf-8"),
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/console/console.js", "text/javascript; charset=utf-8"),
        ("/console/icon.svg", "image/svg+xml"),
    ] {
        let answer = http.get(format!("{}{path}", network.url)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), content_type, "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
    }
    let other = http.get(format!("{}/console/console.html", network.url)).send().await.unwrap();
    assert_eq!(other.status().as_u16(), 404);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_how_things_are_and_a_requests_story_without_a_mouse() {
    let network = Network::start().await;
    let mut ids = Vec::new();
    for message in ["first", "second", "third"] {
        ids.push(network.signed(message).await);
    }
    in_browser(async |browser| {
        browser.resize(1280, 900).await;
        open(browser, &network.url).await;
        browser.until_said("#headline", "Ready to sign").await;
        browser.until_said("#explanation", "All 3 signers are live, 2 are needed").await;
        browser.until_said("#signers", "Signer 3").await;
        browser.until_said("#throughput-summary", "3 completed, 0 failed").await;
        browser.until("document.querySelector('#latency .plot .line.p99')?.getAttribute('d')").await;
        let rows = "[...document.querySelectorAll('#rows tr')].map((row) => row.dataset.key).join()";
        // The newest first.
        assert_eq!(browser.run(&format!("return {rows}")).await, format!("{},{},{}", ids[2], ids[1], ids[0]));
        browser.picture("desktop").await;

        // Everything that can be used has a name.
        for (role, name) in browser.read_aloud().await {
            let used = ["button", "link", "slider", "radio", "textbox"].contains(&role.as_str());
            assert!(!used || !name.is_empty(), "a {role} has no name");
        }

        // The plots come first: their values are read with the arrow keys.
        browser.press(&[TAB]).await;
        browser.press(&[LEFT]).await;
        let said = browser.run("return document.activeElement.getAttribute('aria-valuetext')").await;
        assert!(said.as_str().unwrap().contains("Failed 0"), "{said}");

        let mut tabs = 0;
        while browser.run("return document.activeElement.closest('#rows') === null").await == true {
            tabs += 1;
            assert!(tabs < 20, "a request cannot be reached with the tabulator");
            browser.press(&[TAB]).await;
        }
        browser.press(&[DOWN, ENTER]).await;
        browser.until_said("#request .outcome", "Completed").await;
        assert_eq!(browser.run("return location.hash").await, format!("#/requests/{}", ids[1]));
        let events = "[...document.querySelectorAll('.timeline .what')].map((event) => event.firstChild.textContent).join()";
        let told = browser.run(&format!("return {events}")).await;
        let told = told.as_str().unwrap();
        assert!(told.starts_with("Accepted,Attempt 1,") && told.ends_with(",Completed"), "{told}");
        browser.picture("request").await;

        browser.press(&[ESCAPE]).await;
        browser.until("!document.querySelector('#request').open && location.hash === ''").await;
        assert_eq!(browser.run("return document.activeElement.title").await, ids[1], "the focus is where it was");
        browser.assert_quiet(&network.url, &[]).await;
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_follows_a_request_until_signers_are_back_to_sign_it() {
    let mut network = Network::start().await;
    in_browser(async |browser| {
        browser.resize(1280, 900).await;
        open(browser, &network.url).await;
        network.stop_signer(1).await;
        browser.until_said("#headline", "Ready, without signer 1").await;
        network.stop_signer(2).await;
        browser.until_said("#headline", "Cannot sign").await;
        browser.until_said("#explanation", "1 of 3 signers can sign, and 2 are needed").await;
        browser.picture("cannot-sign").await;

        let id = network.accepted("patience").await;
        browser.run(&format!("location.hash = '#/requests/{id}'")).await;
        browser.until_said("#request .following", "Followed live").await;
        browser.picture("waiting").await;

        network.start_signer(1).await;
        network.start_signer(2).await;
        browser.until_said("#request .outcome", "Completed").await;
        browser.until("document.querySelector('#request .following').hidden").await;
        browser.picture("followed").await;
        browser.assert_quiet(&network.url, &[]).await;
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_leads_to_a_request_and_says_when_there_is_none() {
    let network = Network::start().await;
    let id = network.signed("linked").await;
    in_browser(async |browser| {
        browser.open(&format!("{}/console#/requests/{id}", network.url)).await;
        browser.until_said("#request .outcome", "Completed").await;
        browser.run(&format!("location.hash = '#/requests/{NOBODYS}'")).await;
        browser.until_said("#request .problem", "no request of this id").await;
        browser.run("location.hash = '#/requests/..%2Fkeys'").await;
        browser.until_said("#request .problem", "not the id of a request").await;
        browser.assert_quiet(&network.url, &["404"]).await;
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fits_a_narrow_screen_and_is_dark_and_still_where_that_is_preferred() {
    let network = Network::start().await;
    let id = network.signed("narrow").await;
    in_browser(async |browser| {
        browser.resize(360, 740).await;
        for scheme in ["light", "dark"] {
            browser.prefer(&[("prefers-color-scheme", scheme), ("prefers-reduced-motion", "reduce")]).await;
            open(browser, &network.url).await;
            browser.until_said("#rows", "Completed").await;
            assert_no_sideways_scroll(browser).await;
            let cells = "[...document.querySelectorAll('#rows td')].every((cell) => cell.clientWidth > 0)";
            assert_eq!(browser.run(&format!("return {cells}")).await, true, "each cell of a row is seen");
            browser.picture(&format!("narrow-{scheme}")).await;

            let brightness = "return getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)";
            let channels = browser.run(brightness).await;
            let dark = channels.as_array().unwrap().iter().all(|channel| channel.as_u64().unwrap() < 64);
            assert_eq!(dark, scheme == "dark", "{channels}");

            browser.run(&format!("location.hash = '#/requests/{id}'")).await;
            browser.until_said("#request .outcome", "Completed").await;
            assert_no_sideways_scroll(browser).await;
            assert_eq!(browser.run("return document.getAnimations().length").await, 0, "nothing moves");
            browser.picture(&format!("narrow-request-{scheme}")).await;
        }
        browser.resize(1280, 900).await;
        open(browser, &network.url).await;
        browser.picture("dark").await;
        browser.assert_quiet(&network.url, &[]).await;
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_asks_for_a_token_keeps_it_to_the_tab_and_forgets_it() {
    let network = Network::start_with(ask_for_tokens).await;
    let [signer, reader] = ["sign", "read"].map(|scope| token(&claims("somebody", scope)));
    in_browser(async |browser| {
        browser.resize(1280, 900).await;
        browser.open(&format!("{}/console", network.url)).await;
        browser.until("document.querySelector('#prompt').open").await;
        browser.picture("token").await;

        browser.write("not-a-token").await;
        browser.press(&[ENTER]).await;
        browser.until_said("#prompt-error", "does not accept this token").await;
        browser.write(&signer).await;
        browser.press(&[ENTER]).await;
        browser.until_said("#notice", "lacks the scope read").await;
        browser.picture("forbidden").await;

        browser.run("document.querySelector('#notice-button').click()").await;
        browser.until("document.querySelector('#prompt').open").await;
        browser.write(&reader).await;
        browser.press(&[ENTER]).await;
        browser.until_said("#headline", "Ready to sign").await;
        let kept = browser
            .run("return [Object.values(sessionStorage).join(), localStorage.length, document.cookie, location.href]")
            .await;
        assert_eq!(kept, serde_json::json!([reader, 0, "", format!("{}/console", network.url)]));

        // Not asked again in this tab, until it is told to forget.
        open(browser, &network.url).await;
        browser.run("document.querySelector('#forget').click()").await;
        browser.until("document.querySelector('#prompt').open && sessionStorage.length === 0").await;
        assert_eq!(browser.run("return document.querySelector('#picture').hidden").await, true);
        browser.assert_quiet(&network.url, &["401", "403"]).await;
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_the_document_shows_every_operation_on_any_screen() {
    let network = Network::start_with(ask_for_tokens).await;
    let document: Value =
        reqwest::get(format!("{}/openapi.json", network.url)).await.unwrap().json().await.unwrap();
    in_browser(async |browser| {
        for (width, height, name) in [(1280, 900, "docs"), (360, 740, "docs-narrow")] {
            browser.resize(width, height).await;
            browser.open(&format!("{}/docs", network.url)).await;
            browser.until("document.querySelector('#main h2')").await;
            let shown = browser.run("return document.querySelector('#main').innerText").await;
            let shown = shown.as_str().unwrap();
            for (path, item) in document["paths"].as_object().unwrap() {
                assert!(shown.contains(path.as_str()), "{path}");
                for operation in item.as_object().unwrap().values() {
                    let summary = operation["summary"].as_str().unwrap();
                    assert!(shown.contains(summary), "{path}: {summary}");
                }
            }
            assert!(shown.contains("curl"), "{shown}");
            assert_no_sideways_scroll(browser).await;
            browser.picture(name).await;
        }
        browser.assert_quiet(&network.url, &[]).await;
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_since_when_the_manager_is_gone_and_keeps_the_last_picture() {
    let mut network = Network::start().await;
    let id = network.signed("before").await;
    in_browser(async |browser| {
        browser.resize(1280, 900).await;
        open(browser, &network.url).await;
        browser.until_said("#rows", &id[..8]).await;
        network.stop_manager().await;
        browser.until_said("#notice", "The manager does not answer since").await;
        let shown: Value = browser.run("return document.querySelector('#rows').innerText").await;
        assert!(shown.as_str().unwrap().contains(&id[..8]), "the last picture stays");
        browser.picture("gone").await;
        // What the browser calls it depends on when the connection ended.
        browser.assert_quiet(&network.url, &["net::ERR_"]).await;
    })
    .await;
    network.stop().await;
}
