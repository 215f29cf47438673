//! What is exchanged: bytes with a kind, a key and a scope. Names are made of hashes and short
//! words only, so that they can be subjects and file names.

/// Raised when parcels of other versions would be misunderstood; they do not meet.
pub const FORMAT: u32 = 1;
/// Largest body, in bytes. A server takes messages of 1 MiB.
pub const BODY_BYTES_MAX: usize = 512 << 10;
/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 64;

/// What a parcel is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A program worth keeping; its key is its id.
    Entry,
    /// A finding; its key is a hash of its body.
    Finding,
    /// What a machine says of itself; its key is the machine, and only the last is kept.
    Status,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Entry, Kind::Finding, Kind::Status];

    pub const fn word(self) -> &'static str {
        match self {
            Kind::Entry => "entry",
            Kind::Finding => "finding",
            Kind::Status => "status",
        }
    }

    pub fn of_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Whether a later parcel takes the place of an earlier one of its key.
    pub const fn is_replaced(self) -> bool {
        matches!(self, Kind::Status)
    }
}

/// Who meets: machines that run the same kernel, by a name made of letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(String);

impl Scope {
    pub fn new(word: &str) -> Option<Scope> {
        is_name(word).then(|| Scope(word.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    pub kind: Kind,
    pub scope: Scope,
    key: String,
    body: Vec<u8>,
}

impl Parcel {
    /// `None` if the key is no name or the body is too large.
    pub fn new(kind: Kind, scope: &Scope, key: &str, body: Vec<u8>) -> Option<Parcel> {
        let fits = is_name(key) && body.len() <= BODY_BYTES_MAX;
        fits.then(|| Parcel { kind, scope: scope.clone(), key: key.to_owned(), body })
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Where it lies: `SCOPE.KIND.KEY`.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.scope.0, self.kind.word(), self.key)
    }

    /// The parcel of a name and a body that came from outside.
    pub fn of_name(name: &str, body: Vec<u8>) -> Option<Parcel> {
        let mut words = name.split('.');
        let (scope, kind, key) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        Parcel::new(Kind::of_word(kind)?, &Scope::new(scope)?, key, body)
    }
}

pub(crate) fn is_name(word: &str) -> bool {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !word.is_empty() && word.len() <= KEY_BYTES_MAX && word.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_parcel_and_others_to_none() {
        let scope = Scope::new("ab12").unwrap();
        let parcel = Parcel::new(Kind::Entry, &scope, "00ff", b"x".to_vec()).unwrap();
        assert_eq!(parcel.name(), "ab12.entry.00ff");
        assert_eq!(Parcel::of_name(&parcel.name(), b"x".to_vec()), Some(parcel));
        for name in [
            "",
            ".",
            "a.entry",
            "a.entry.b.c",
            "a.other.b",
            "A.entry.b",
            "a.entry.",
            "a.entry.*",
            "a.entry.>",
            "../x.entry.b",
            "a.entry.b/c",
            "a.entry.b\0",
        ] {
            assert_eq!(Parcel::of_name(name, Vec::new()), None, "{name}");
        }
        let long = "a".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(Scope::new(&long), None);
        let body = vec![0; BODY_BYTES_MAX + 1];
        assert_eq!(Parcel::new(Kind::Entry, &scope, "b", body), None);
    }
}
