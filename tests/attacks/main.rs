//! Attacks, each by whoever could make it: the broker, a manager, a signer, an outsider.
//!
//! A test shows what becomes of the attack (what is refused, and as what it is counted) and that honest
//! signers sign afterwards. The attackers are made of the library itself:
//!
//! | module | attacker |
//! |---|---|
//! | [`tampering_bus`] | the broker: sees, changes, repeats, delays, drops, invents |
//! | [`rogue_engine`] | a signer that sends what no honest signer sends, properly signed |
//! | [`equivocator`] | a signer that tells each another broadcast, properly signed |
//! | [`cluster`] | a manager that asks whom it likes for what it likes; and the honest parts |

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod cluster;
mod equivocator;
mod rogue_engine;
mod tampering_bus;

mod cheats;
mod forgeries;
mod key_generation;
mod manager_lies;
mod refreshes;
mod replays;
mod requests;
mod secrets;
mod silence;
mod snapshots;
mod starts;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/installation.rs"]
mod installation;
