//! Where a hub is and who may talk to it: refuses what would go over a network in the clear.

use std::net::IpAddr;
use std::path::PathBuf;
use url::{Host, Url};

/// Port of a nats-server.
const PORT: u16 = 4222;

/// A way to a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `nats://HOST[:PORT]` or `tls://HOST[:PORT]`.
    Nats { host: String, port: u16, tls: bool },
    /// A folder that several hosts mount, or one host's own: `file:///DIR`.
    Folder(PathBuf),
}

/// What a hub asks for besides its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// File with a token, or with the seed of an nkey (`SU...`).
    pub credentials: Option<PathBuf>,
    /// Certificates to trust besides those of the system, PEM.
    pub ca: Option<PathBuf>,
}

/// `Display` is the error line, [`AddressError::help`] the help line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("`{0}` is no address of a hub")]
    Malformed(String),
    #[error("{0} holds a password, which the command line shows to everybody")]
    Password(String),
    #[error("{0} is on another machine and not encrypted")]
    Plain(String),
}

impl AddressError {
    pub fn help(&self) -> &'static str {
        match self {
            AddressError::Malformed(_) => {
                "nats://127.0.0.1:4222, tls://HOST:4222, or file:///SHARED/FOLDER"
            }
            AddressError::Password(_) => "put the token or nkey seed into a file: hub_credentials",
            AddressError::Plain(_) => {
                "use tls://, or set hub_plain = true where the network is yours alone"
            }
        }
    }
}

impl Address {
    /// `plain`: a hub elsewhere may be talked to in the clear.
    pub fn parse(text: &str, plain: bool) -> Result<Address, AddressError> {
        let malformed = || AddressError::Malformed(text.to_owned());
        let url = Url::parse(text).map_err(|_| malformed())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressError::Password(format!("the address of {}", url.scheme())));
        }
        let bare = matches!(url.path(), "" | "/") && url.query().is_none();
        let tls = match url.scheme() {
            "file" => {
                let folder = url.to_file_path().map_err(|()| malformed())?;
                return Ok(Address::Folder(folder));
            }
            "nats" if bare => false,
            "tls" if bare => true,
            _ => return Err(malformed()),
        };
        let host = url.host().ok_or_else(malformed)?.to_owned();
        if !tls && !plain && !is_here(&host) {
            return Err(AddressError::Plain(text.to_owned()));
        }
        Ok(Address::Nats { host: host.to_string(), port: url.port().unwrap_or(PORT), tls })
    }
}

/// Of an unknown scheme every host is a domain, addresses too.
fn is_here(host: &Host) -> bool {
    let name = host.to_string();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_go_over_a_network_in_the_clear_is_refused() {
        let nats = |host: &str, port, tls| Ok(Address::Nats { host: host.into(), port, tls });
        for (text, expected) in [
            ("nats://127.0.0.1", nats("127.0.0.1", 4222, false)),
            ("nats://localhost:4300", nats("localhost", 4300, false)),
            ("nats://[::1]:1", nats("[::1]", 1, false)),
            ("tls://hub.example", nats("hub.example", 4222, true)),
            ("file:///srv/hgm", Ok(Address::Folder("/srv/hgm".into()))),
        ] {
            assert_eq!(Address::parse(text, false), expected, "{text}");
        }
        for text in ["nats://hub.example", "nats://192.0.2.1", "nats://0.0.0.0"] {
            let refused = Address::parse(text, false);
            assert_eq!(refused, Err(AddressError::Plain(text.into())));
            assert!(Address::parse(text, true).is_ok(), "{text}");
        }
        for text in
            ["", "hub", "http://x", "nats://", "nats://h/path", "nats://h?x=1", "file://h/x"]
        {
            let refused = Address::parse(text, true);
            assert!(matches!(refused, Err(AddressError::Malformed(_))), "{text}: {refused:?}");
        }
        let refused = Address::parse("nats://me:secret@127.0.0.1", true).unwrap_err();
        assert!(!refused.to_string().contains("secret"));
    }
}
