//! Who calls, and what that one may do.

use std::collections::BTreeSet;

use tss_mpc::DerivationPath;

use crate::store::Request;

/// The longest subject, in bytes.
pub const MAX_SUBJECT: usize = 255;

/// What a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be let in at all: public keys are shown, and signatures checked, for every caller.
    Any,
    /// To ask for signatures: `sign`.
    Sign,
    /// To see requests: all of them with `read`, one's own with `sign`.
    See,
    /// To see what goes on: `read`.
    Read,
    /// To see who asked for what, and to have shares made anew: `admin`.
    Admin,
}

/// What a token allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    /// To ask for signatures, and to see one's own requests.
    pub sign: bool,
    /// To see everybody's requests.
    pub read: bool,
    /// To list them, and who asked for them; to have shares made anew.
    pub admin: bool,
}

impl Scopes {
    /// Those of these words that are scopes. Others are for other services.
    pub fn of<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut scopes = Self::default();
        for word in words {
            match word {
                "sign" => scopes.sign = true,
                "read" => scopes.read = true,
                "admin" => scopes.admin = true,
                _ => {}
            }
        }
        scopes
    }
}

/// Somebody who has been let in.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None` where nobody has to say.
    subject: Option<String>,
    scopes: Scopes,
    /// The keys that it is limited to.
    keys: Option<BTreeSet<String>>,
    /// The paths that it is limited to, with all below them.
    paths: Option<Vec<DerivationPath>>,
}

impl Caller {
    /// Anybody, where everybody may do everything.
    pub fn anybody() -> Self {
        let scopes = Scopes { sign: true, read: true, admin: true };
        Self { subject: None, scopes, keys: None, paths: None }
    }

    /// Somebody with a token.
    pub fn with_token(
        subject: String,
        scopes: Scopes,
        keys: Option<BTreeSet<String>>,
        paths: Option<Vec<DerivationPath>>,
    ) -> Self {
        Self { subject: Some(subject), scopes, keys, paths }
    }

    /// Who it is, where callers have to say.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Whether it has the scope that something takes.
    pub fn has(&self, need: Need) -> bool {
        let Scopes { sign, read, admin } = self.scopes;
        match need {
            Need::Any => sign || read || admin,
            Need::Sign => sign,
            Need::See => sign || read,
            Need::Read => read,
            Need::Admin => admin,
        }
    }

    /// Whether it may use, or look at, a key at any path.
    pub fn may_use_key(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.contains(key))
    }

    /// Whether it may use a key at a path.
    pub fn may_use(&self, key: &str, path: &DerivationPath) -> bool {
        let below = |above: &DerivationPath| path.steps().starts_with(above.steps());
        self.may_use_key(key) && self.paths.as_ref().is_none_or(|paths| paths.iter().any(below))
    }

    /// Whether it may see a request.
    pub fn may_see(&self, request: &Request) -> bool {
        let own = self.subject.is_some() && self.subject == request.requester;
        (self.scopes.read || self.scopes.sign && own)
            && self.may_use(&request.intent.key, &request.intent.path)
    }
}
