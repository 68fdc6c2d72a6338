//! Share documents: what is accepted can be written again and can begin to sign.

#![no_main]

use std::cell::RefCell;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use tss_fuzz::{Input, SHARE_1, documents, signer};
use tss_mpc::{
    DerivationPath, Dkls23, Engine as _, Payload, Quorum, SessionId, ShareDocument, ShareError, SignSetup,
};
use zeroize::Zeroizing;

thread_local! {
    /// The fixture, whose engine part alone is replaced at each input.
    static DOCUMENT: RefCell<ShareDocument> =
        RefCell::new(documents().remove(&signer(1)).expect("there is one of signer 1"));
}

/// The fixture without the engine's part, which is most of it, and that part's bytes.
static SPLIT: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let mut document = documents().remove(&signer(1)).expect("there is one of signer 1");
    let text = document.engines.dkls23.take().expect("it is of this engine");
    let json = document.to_json().expect("it has a JSON form").to_vec();
    let bytes = STANDARD.decode(&*text).expect("the fixture is base64");
    (String::from_utf8(json).expect("JSON is UTF-8"), bytes)
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() {
        0..=15 => json(input.rest()),
        16..=47 => json(&input.edit(SHARE_1.as_bytes())),
        48..=127 => json(&input.edit(SPLIT.0.as_bytes())),
        kind => {
            let bytes = input.edit(&SPLIT.1);
            let text = if kind == 255 { input.text() } else { STANDARD.encode(&bytes) };
            engine(text, kind % 64 == 0);
        }
    }
});

fn json(bytes: &[u8]) {
    let document = match ShareDocument::from_json(bytes) {
        Ok(document) => document,
        Err(ShareError::MissingEngine(_)) => panic!("a document is read without an engine"),
        Err(_) => return,
    };
    let written = document.to_json().expect("it came from JSON");
    let read = ShareDocument::from_json(&written).expect("what was written is read");
    assert_eq!(*read.to_json().expect("it came from JSON"), *written);
    if let Some(share) = open(&document) {
        start(&*share, &document);
    }
}

/// Opens the fixture with this engine part.
fn engine(text: String, and_start: bool) {
    DOCUMENT.with_borrow_mut(|document| {
        document.engines.dkls23 = Some(Zeroizing::new(text));
        match open(document) {
            Some(share) if and_start => start(&*share, document),
            _ => {}
        }
    });
}

fn open(document: &ShareDocument) -> Option<std::sync::Arc<dyn tss_mpc::SigningShare>> {
    let opened = Dkls23.open(document);
    let missing = matches!(opened, Err(ShareError::MissingEngine(_)));
    assert_eq!(missing, document.engines.dkls23.is_none());
    opened.ok()
}

/// Whatever the correlations are, the first messages can be made.
fn start(share: &dyn tss_mpc::SigningShare, document: &ShareDocument) {
    let threshold = document.core.threshold;
    let others = threshold.signers().filter(|index| *index != document.core.index);
    let members = others.take(usize::from(threshold.t()) - 1).chain([document.core.index]);
    let quorum = Quorum::new(members).expect("they differ");
    let setup = SignSetup {
        session: SessionId([7; 32]),
        quorum,
        payload: Payload::Digest([3; 32]),
        path: DerivationPath::root(),
    };
    let mut machine = share.sign(setup).expect("the quorum fits the key");
    let step = machine.start().expect("nothing can be wrong before a message came");
    assert_eq!(step.send.len(), usize::from(threshold.t()) - 1);
    assert!(step.output.is_none());
}
