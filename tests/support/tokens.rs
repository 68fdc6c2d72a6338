//! Tokens, and a manager that asks for them.

use std::path::Path;

use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tss_common::config::{Auth, Config, JwtConfig};

/// What they are made with.
const SECRET: &str = "a secret of at least 32 bytes, for tests";

/// Has a manager ask for tokens.
pub(crate) fn ask_for_tokens(config: &mut Config, folder: &Path) {
    let file = folder.join("secrets");
    std::fs::write(&file, SECRET).unwrap();
    config.auth = Some(Auth::Jwt);
    config.jwt = JwtConfig { secret_file: Some(file), ..JwtConfig::default() };
}

/// A token that says this.
pub(crate) fn token(claims: &Value) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

/// What is taken: of this subject, with these scopes.
pub(crate) fn claims(subject: &str, scope: &str) -> Value {
    let exp = Timestamp::now().as_second() + 600;
    json!({ "sub": subject, "aud": "tss", "exp": exp, "scope": scope })
}
