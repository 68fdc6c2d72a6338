//! A typed client of the REST API of a TSS network's manager.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | [`Client`]: a method for each endpoint |
//! | [`builder`] | what a client is made of: where the manager is, whom to believe, who asks, how patiently |
//! | [`types`] | what is asked and answered |
//! | [`bytes`] | bytes that are hex in JSON |
//! | [`error`] | [`Error`]: why there is no answer, or another than was hoped for |
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use tss_client::Client;
//! use tss_client::types::SignRequest;
//!
//! # async fn example() -> Result<(), tss_client::Error> {
//! let client = Client::builder("https://manager.example:8080")
//!     .authorities("ca.crt")
//!     .token_file("/var/run/secrets/tss/token")
//!     .build()?;
//! let request = SignRequest { path: Some("0/1/2".into()), ..SignRequest::text("hello") };
//! let signed = client.sign_and_wait(&request, Duration::from_secs(30)).await?;
//! println!("{} by {}", signed.compact, signed.public_key);
//! # Ok(())
//! # }
//! ```
//!
//! A call that meets a manager which is away, starting or busy is made again, later and later, for as long as
//! [`ClientBuilder::retry_for`] says. That is safe for all of them: `POST /sign` always carries an idempotency key, and
//! asking twice with one key is asking once; and a refresh of a key's shares that is under way is not begun again.
//!
//! Answers are trusted for nothing but their shape. Whoever must not believe the manager compares
//! [`Signed::public_key`](types::Signed::public_key) with the key as it was printed when it was made, and checks the
//! signature with a library for secp256k1.

pub mod builder;
pub mod bytes;
pub mod client;
pub mod error;
pub mod types;

mod events;
mod names;
mod token;
mod tries;

pub use builder::ClientBuilder;
pub use bytes::{Hex, HexBytes};
pub use client::{Client, MAX_BODY};
pub use error::Error;
