//! `GET /console`: the web console, out of files that are part of this program.
//!
//! It asks for nothing but these files and the API itself, so it works where the manager is all that can be reached. The
//! files are everybody's: what they show is asked of the API, with the reader's token.

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;

use super::page::served;

/// A file, and where it is served.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of `src/console` with its content type.
macro_rules! file {
    ($path:literal, $content_type:ident, $name:literal) => {
        File { path: $path, content_type: $content_type, text: include_str!(concat!("../console/", $name)) }
    };
}

const FILES: [File; 10] = [
    file!("/console", HTML, "index.html"),
    file!("/console/console.css", CSS, "console.css"),
    file!("/console/icon.svg", SVG, "icon.svg"),
    file!("/console/console.js", JAVASCRIPT, "console.js"),
    file!("/console/api.js", JAVASCRIPT, "api.js"),
    file!("/console/dom.js", JAVASCRIPT, "dom.js"),
    file!("/console/plot.js", JAVASCRIPT, "plot.js"),
    file!("/console/request.js", JAVASCRIPT, "request.js"),
    file!("/console/table.js", JAVASCRIPT, "table.js"),
    file!("/console/words.js", JAVASCRIPT, "words.js"),
];

/// The console's routes, one for each file.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // The page names its files relative to itself; a `/` at the end would make them others.
    let routes = Router::new().route("/console/", get(|| async { Redirect::permanent("../console") }));
    FILES.into_iter().fold(routes, |routes, file| {
        routes.route(file.path, get(move || async move { served(file.content_type, file.text) }))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// What stands between quotes in a text.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('"').skip(1).step_by(2)
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let name = |file: &File| file.path.strip_prefix("/console/").unwrap_or("index.html").to_owned();
        let served: BTreeSet<String> = FILES.iter().map(name).collect();
        assert_eq!(served, there);
    }

    #[test]
    fn files_name_only_files_that_are_served() {
        for file in &FILES {
            for name in quoted(file.text) {
                let path = match (file.content_type, name.strip_prefix("./")) {
                    (HTML, None) if name.starts_with("console/") => format!("/{name}"),
                    (JAVASCRIPT, Some(module)) => format!("/console/{module}"),
                    _ => continue,
                };
                assert!(FILES.iter().any(|served| served.path == path), "{} names {path}", file.path);
            }
        }
    }

    #[test]
    fn files_name_no_other_host_and_make_no_markup_of_data() {
        for file in &FILES {
            let text = file.text.replace("http://www.w3.org/2000/svg", "");
            for word in ["://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(word), "{} has `{word}`", file.path);
            }
        }
    }

    #[test]
    fn the_page_has_nothing_inline_that_its_policy_forbids() {
        let page = FILES[0].text;
        assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains(" onclick="));
        assert_eq!(page.matches("<script").count(), page.matches("<script type=\"module\" src=").count());
    }
}
