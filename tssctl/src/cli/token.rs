//! `token`: tokens of a manager that shares a secret with whoever makes them (HS256, RFC 7519). A manager that believes an
//! identity provider has its tokens made there.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use serde_json::{Value, json};
use tss_mpc::DerivationPath;
use tssctl::private;
use zeroize::Zeroizing;

use super::connection::{ManagerArguments, Token, ensure_private};
use super::exit::Failure;
use super::output::{self, Printer};

/// The shortest secret that a manager takes, in bytes: as long as the hash (RFC 7518, section 3.2).
const MIN_SECRET: usize = 32;

/// The longest file with a secret or a token, in bytes.
const MAX_FILE: u64 = 16 << 10;

/// The longest time that a token holds.
const MAX_EXPIRY: SignedDuration = SignedDuration::from_hours(366 * 24);

/// How many keys or paths a token names at most.
const MAX_NAMES: usize = 64;

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, signed with the secret that the manager's `jwt.secret_file` holds (HS256).
    Make(MakeArguments),
    /// Show what a token says, without checking who made it.
    Show(ShowArguments),
}

#[derive(Args)]
pub(crate) struct MakeArguments {
    /// The file with the secret: at least 32 bytes, and a line's end that is no part of it.
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
    /// Who asks.
    #[arg(long)]
    subject: String,
    /// What may be asked: sign, read, admin.
    #[arg(long, value_delimiter = ',', required = true)]
    scope: Vec<Scope>,
    /// With which keys alone; once for each.
    #[arg(long)]
    key: Vec<String>,
    /// With which derived keys alone: what their paths begin with, as in 0/1; once for each.
    #[arg(long)]
    path: Vec<DerivationPath>,
    /// For how long it holds, as in 90s, 15m, 1h or 30d; 366 days at most.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_expiry)]
    expires: SignedDuration,
    /// Who it is for: the manager's `jwt.audience`, or its cluster's name.
    #[arg(long, default_value = "tss")]
    audience: String,
    /// Who makes it, where the manager expects that (`iss`).
    #[arg(long)]
    issuer: Option<String>,
    /// Write it to this file, which only its owner can read, instead of printing it. Replaces what is there.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ShowArguments {
    /// The file with the token; - for standard input. The token that would be sent without.
    file: Option<PathBuf>,
    #[command(flatten)]
    manager: ManagerArguments,
}

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// For signatures, and how far the same subject's requests are.
    Sign,
    /// How everybody's requests and the network are.
    Read,
    /// For lists of all requests, and new shares of keys.
    Admin,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Sign => "sign",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// What a token says.
#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    aud: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    iat: i64,
    exp: i64,
    scope: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tss_keys: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tss_paths: &'a [DerivationPath],
}

/// `90s`, `1h 30m`, `30d`.
fn parse_expiry(text: &str) -> Result<SignedDuration, String> {
    let expected = "expected a time like 90s, 15m, 1h or 30d, 366 days at most";
    let span: Span = text.parse().map_err(|error| format!("{error}: {expected}"))?;
    let time = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|error| format!("{error}: {expected}"))?;
    if time < SignedDuration::from_secs(1) || time > MAX_EXPIRY {
        return Err(expected.into());
    }
    Ok(time)
}

/// Runs `token`.
pub(crate) fn run(command: TokenCommand, printer: Printer) -> anyhow::Result<()> {
    match command {
        TokenCommand::Make(arguments) => {
            let token = make(&arguments, &read_secret(&arguments.secret_file)?, Timestamp::now())?;
            match &arguments.out {
                Some(file) => write(file, &token).with_context(|| format!("token file {}", file.display())),
                None => printer.answer(&json!({ "token": *token }), |_| token.to_string()),
            }
        }
        TokenCommand::Show(arguments) => {
            let shown = decode(&read(&arguments)?)?;
            printer.answer(&shown, describe)
        }
    }
}

/// The first secret of a file, one a line: a manager takes tokens that are made with any of them.
fn read_secret(file: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    ensure_private("secret", file)?;
    let wrong = |problem: String| Failure::usage(format!("secret file {}: {problem}", file.display()));
    let mut secret = std::fs::File::open(file)
        .and_then(|file| private::read(file, MAX_FILE))
        .map_err(|error| wrong(error.to_string()))?;
    let first = secret.iter().position(|&byte| byte == b'\n').unwrap_or(secret.len());
    secret.truncate(first);
    if secret.last() == Some(&b'\r') {
        secret.pop();
    }
    if secret.len() < MIN_SECRET {
        let problem = format!(
            "its first line has {} bytes: expected at least {MIN_SECRET}, as from `openssl rand -hex 32`",
            secret.len()
        );
        return Err(wrong(problem));
    }
    Ok(secret)
}

fn make(arguments: &MakeArguments, secret: &[u8], now: Timestamp) -> anyhow::Result<Zeroizing<String>> {
    for (what, count) in [("--key", arguments.key.len()), ("--path", arguments.path.len())] {
        if count > MAX_NAMES {
            return Err(Failure::usage(format!("{what}: {count} of them: expected at most {MAX_NAMES}")));
        }
    }
    if arguments.subject.is_empty() {
        return Err(Failure::usage("--subject: expected the name of who asks"));
    }
    let mut scopes: Vec<&str> = Vec::new();
    for scope in arguments.scope.iter().map(|scope| scope.name()) {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    let claims = Claims {
        sub: &arguments.subject,
        aud: &arguments.audience,
        iss: arguments.issuer.as_deref(),
        iat: now.as_second(),
        exp: now.checked_add(arguments.expires).context("--expires: there is no such time")?.as_second(),
        scope: scopes.join(" "),
        tss_keys: &arguments.key,
        tss_paths: &arguments.path,
    };
    let token =
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret));
    Ok(Zeroizing::new(token.context("the token cannot be signed")?))
}

/// Replaces the file at once, so that nobody reads half a token.
fn write(file: &Path, token: &str) -> anyhow::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Only its owner can read it.
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(token.as_bytes())?;
    new.write_all(b"\n")?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

fn read(arguments: &ShowArguments) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let from_file = |file: &Path| {
        let wrong = |error| Failure::usage(format!("token file {}: {error}", file.display()));
        std::fs::File::open(file).and_then(|file| private::read(file, MAX_FILE)).map_err(wrong)
    };
    match &arguments.file {
        Some(file) if file.as_os_str() == "-" => private::read(std::io::stdin().lock(), MAX_FILE)
            .map_err(|error| Failure::usage(format!("standard input: {error}"))),
        Some(file) => from_file(file),
        None => match arguments.manager.token(&arguments.manager.profile()?) {
            Some(Token::Text(text)) => Ok(Zeroizing::new(text.into_bytes())),
            Some(Token::File(file)) => from_file(&file),
            None => Err(Failure::usage(
                "there is no token: expected a file, TSS_TOKEN, or a profile that names one",
            )),
        },
    }
}

/// What a token says, whoever made it.
fn decode(token: &[u8]) -> anyhow::Result<Value> {
    let token = token.trim_ascii();
    let none = |error: jsonwebtoken::errors::Error| {
        Failure::usage(format!(
            "the token is none: {error}: expected three parts of base64url with dots between them"
        ))
    };
    let header = jsonwebtoken::decode_header(token).map_err(none)?;
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(none)?;
    Ok(json!({ "verified": false, "header": header, "claims": claims }))
}

fn describe(shown: &Value) -> String {
    let mut text = "NOT VERIFIED: anybody can make a token that says this\n".to_owned();
    for part in ["header", "claims"] {
        for (name, value) in shown[part].as_object().into_iter().flatten() {
            let time = value.as_i64().filter(|_| matches!(name.as_str(), "iat" | "exp" | "nbf"));
            let time = time.and_then(|seconds| Timestamp::from_second(seconds).ok());
            let value = match (time, value) {
                (_, Value::Null) => continue,
                (Some(time), _) => time.to_string(),
                (None, Value::String(text)) => text.clone(),
                (None, value) => value.to_string(),
            };
            text += &format!("{:10} {}\n", output::plain(name), output::plain(&value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        make: MakeArguments,
    }

    fn arguments(more: &[&str]) -> Result<MakeArguments, clap::Error> {
        let line = [&["t", "--secret-file", "s", "--subject", "alice"], more].concat();
        Line::try_parse_from(line).map(|line| line.make)
    }

    #[test]
    fn a_token_says_what_was_asked_for_and_its_signature_holds() {
        let secret = [7; 32];
        let now = Timestamp::now();
        let make_with = |more: &[&str]| make(&arguments(more).unwrap(), &secret, now).unwrap();
        let token = make_with(&[
            "--scope",
            "sign,read",
            "--scope",
            "sign",
            "--key",
            "default",
            "--path",
            "0/1",
            "--expires",
            "2h",
            "--audience",
            "tss",
            "--issuer",
            "ops",
        ]);
        let mut validation = jsonwebtoken::Validation::new(Algorithm::HS256);
        validation.set_audience(&["tss"]);
        let key = jsonwebtoken::DecodingKey::from_secret(&secret);
        let read = jsonwebtoken::decode::<Value>(&*token, &key, &validation).unwrap().claims;
        let expected = json!({
            "sub": "alice", "aud": "tss", "iss": "ops", "iat": now.as_second(), "exp": now.as_second() + 7200,
            "scope": "sign read", "tss_keys": ["default"], "tss_paths": ["0/1"],
        });
        assert_eq!(read, expected);
        assert_eq!(decode(token.as_bytes()).unwrap()["claims"], expected);
        let text = describe(&decode(token.as_bytes()).unwrap());
        assert!(text.starts_with("NOT VERIFIED") && text.contains("sign read"), "{text}");

        let bare = decode(make_with(&["--scope", "admin"]).as_bytes()).unwrap();
        let names: Vec<_> = bare["claims"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["aud", "exp", "iat", "scope", "sub"], "a token without limits names none");
    }

    #[test]
    fn times_scopes_and_paths_that_are_none_are_refused() {
        for expires in ["0s", "-1h", "367d", "soon", "1", "1y"] {
            assert!(arguments(&["--scope", "sign", &format!("--expires={expires}")]).is_err(), "{expires}");
        }
        for expires in ["90s", "15m", "1h 30m", "30d", "366d"] {
            assert!(arguments(&["--scope", "sign", "--expires", expires]).is_ok(), "{expires}");
        }
        for more in [&[][..], &["--scope", "root"], &["--scope", "sign", "--path", "0'"]] {
            assert!(arguments(more).is_err(), "{more:?}");
        }
        for text in ["", "a.b", "a.b.c", "eyJhbGciOiJIUzI1NiJ9.e30"] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
    }
}
