//! Runs an example.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long an example may take, with building it where nobody has.
const LONG: Duration = Duration::from_secs(1200);

/// Names and values.
pub(crate) type Variables<'a> = &'a [(&'a str, &'a str)];

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) succeeded: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs an example with the line of the README, and with these of its variables and no others.
pub(crate) async fn run(name: &str, variables: Variables<'_>) -> Output {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let test = std::env::current_exe().expect("this program has a path");
    let target = test.ancestors().nth(3).expect("target/{profile}/deps/{test}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line(project, name)]).current_dir(project).env("CARGO_TARGET_DIR", target);
    shell.env_remove("TSS_MANAGER").env_remove("TSS_TOKEN").envs(variables.iter().copied());
    let ended = shell.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LONG, ended).await.expect("it ends").expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { succeeded: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The line of the README that runs an example.
fn line(project: &Path, name: &str) -> String {
    let readme = std::fs::read_to_string(project.join("examples/README.md")).expect("a README");
    let end = [format!(" --bin {name}"), format!("python examples/{name}/sign.py")];
    let mut lines = readme.lines().filter(|line| end.iter().any(|end| line.ends_with(end)));
    let line = lines.next().unwrap_or_else(|| panic!("the README has no line that runs {name}"));
    line.to_owned()
}
