//! What manager and signer share.
//!
//! | module | holds |
//! |---|---|
//! | [`bus`] | how messages travel: in process, or over RabbitMQ |
//! | [`encoding`] | how bytes stand in JSON |
//! | [`intent`] | what a caller wants signed |

pub mod bus;
pub mod encoding;
pub mod intent;
