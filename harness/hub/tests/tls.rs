//! A nats-server that takes TLS only: who may talk to it, and what the others are told.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use hub::{Access, Address, Nats, Post, Scope};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Got, Server, entry, until};

/// A certificate authority, and where its certificate is.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = dir.join(format!("{name}.pem"));
        std::fs::write(&file, issuer.pem()).unwrap();
        Authority { issuer, file }
    }

    /// Files with a certificate for this host and its key.
    fn sign(&self, dir: &Path, host: &str) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        [("cert", cert.pem()), ("key", key.serialize_pem())].map(|(name, text)| {
            let file = dir.join(format!("{host}-{name}.pem"));
            std::fs::write(&file, text).unwrap();
            file.to_string_lossy().into_owned()
        })
    }

    fn access(&self) -> Access {
        Access { ca: Some(self.file.clone()), ..Access::default() }
    }
}

fn start([cert, key]: &[String; 2]) -> Server {
    Server::with(&["--tls", "--tlscert", cert, "--tlskey", key])
}

fn post(address: &str, access: &Access) -> Post {
    let Ok(Address::Nats { host, port, tls }) = Address::parse(address, false) else {
        panic!("{address}")
    };
    let nats = Nats::open(&host, port, tls, access, Scope::new("k")).unwrap();
    Post::open(Box::new(nats)).unwrap()
}

/// What somebody is told who sends and gets nothing.
fn refused(address: &str, access: &Access) -> String {
    let post = post(address, access);
    post.send(entry("k", "of-nobody"));
    let told = || post.figures().why.filter(|why| why != "no answer yet");
    until("it is told why", || told().is_some());
    std::thread::sleep(Duration::from_millis(1500));
    let figures = post.figures();
    assert!(!figures.reached && figures.sent == 0 && figures.received == 0, "{figures:?}");
    let why = told().unwrap();
    println!("{address}: {why}");
    assert!(!why.contains('\n'), "{why}");
    why
}

#[test]
fn only_who_knows_its_authority_and_its_name_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (Authority::new(dir.path(), "right"), Authority::new(dir.path(), "wrong"));
    let server = start(&right.sign(dir.path(), "127.0.0.1"));
    let address = format!("tls://127.0.0.1:{}", server.port);

    let (a, b) = (post(&address, &right.access()), post(&address, &right.access()));
    a.send(entry("k", "1"));
    let mut got = Got::default();
    until("it arrives", || {
        got.look(&b);
        got.keys.contains("1")
    });

    let trust = "issued by nobody who is trusted here";
    assert!(refused(&address, &wrong.access()).contains(trust));
    assert!(refused(&address, &Access::default()).contains(trust), "the system knows it not");
    let plain = format!("nats://127.0.0.1:{}", server.port);
    assert!(refused(&plain, &Access::default()).contains("it takes TLS only"));
    let name = format!("tls://localhost:{}", server.port);
    assert!(refused(&name, &right.access()).contains("its certificate is of another host"));

    // None of it came through.
    std::thread::sleep(Duration::from_millis(300));
    got.look(&b);
    assert_eq!((got.keys.len(), a.figures().received), (1, 0));
}

/// Who asks for TLS never talks in the clear, whatever the server offers.
#[test]
fn a_server_without_tls_is_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start();
    let address = format!("tls://127.0.0.1:{}", server.port);
    let why = refused(&address, &Authority::new(dir.path(), "any").access());
    assert!(why.contains("it does not speak TLS"), "{why}");
    let b = server.post("k");
    until("the other is there", || b.figures().reached);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(b.figures().received, 0);
}

#[test]
fn a_file_that_is_no_certificate_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Access { ca: Some(dir.path().join("missing.pem")), ..Access::default() };
    let error = Nats::open("127.0.0.1", 1, true, &missing, None).unwrap_err();
    assert!(error.0.contains("missing.pem"), "{error}");
    let file = dir.path().join("text.pem");
    std::fs::write(&file, "no certificate\n").unwrap();
    let text = Access { ca: Some(file), ..Access::default() };
    let error = Nats::open("127.0.0.1", 1, true, &text, None).unwrap_err();
    assert!(error.0.contains("text.pem") && error.0.contains("no certificate"), "{error}");
}
