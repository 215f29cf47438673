//! The connection to a nats-server: made and made again in the background, and why it is not there, in
//! words that say what to do. Never here: what goes over it.

use crate::{Access, Away};
use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::{Client, ConnectOptions, Event};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long the server may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How long a connection may be silent; the server is then taken for gone.
const PING: Duration = Duration::from_secs(5);
/// Longest pause between two tries to connect.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Bytes of a file with a token or seed that are read.
const SECRET_BYTES: usize = 4096;
/// Bytes of a file with certificates in which one must begin.
const CA_BYTES: u64 = 1 << 20;
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// See the module's head.
pub(super) struct Connection {
    pub runtime: Runtime,
    pub context: Context,
    client: Client,
    tls: bool,
    /// Connections made.
    made: Arc<AtomicU64>,
    /// Why the last try to connect failed.
    why: Arc<Mutex<Option<String>>>,
}

impl Connection {
    /// Prepares a client; a server that is not there yet is connected to when it comes. Errors
    /// are those of the files that `access` names.
    pub fn open(host: &str, port: u16, tls: bool, access: &Access) -> Result<Connection, Away> {
        let (made, why) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
        let (count, reason) = (made.clone(), why.clone());
        let options = ConnectOptions::new()
            .name("hgm")
            .retry_on_initial_connect()
            .connection_timeout(ANSWER)
            .request_timeout(Some(ANSWER))
            .ping_interval(PING)
            .reconnect_delay_callback(|tries| {
                RETRY_MAX.min(Duration::from_millis(50) * tries as u32)
            })
            // Called before each try with what became of the last; it leaves the choice alone.
            .reconnect_to_server_callback(move |servers, _| {
                let last = servers.into_iter().find_map(|server| server.last_error);
                *reason.lock().unwrap_or_else(PoisonError::into_inner) = last;
                async { None }
            })
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                tracing::debug!("hub: {event}");
                async {}
            })
            .require_tls(tls);
        let options = with_secrets(options, access)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("nats")
            .enable_all()
            .build()
            .map_err(|error| Away(format!("no runtime: {error}")))?;
        let address = format!("{}://{host}:{port}", if tls { "tls" } else { "nats" });
        let client = runtime
            .block_on(options.connect(address.as_str()))
            .map_err(|error| Away(format!("{address}: {error}")))?;
        // It starts a task of its own.
        let inside = runtime.enter();
        let mut context = async_nats::jetstream::new(client.clone());
        drop(inside);
        context.set_timeout(ANSWER);
        Ok(Connection { runtime, context, client, tls, made, why })
    }

    /// Without a connection every request would wait for its time-out.
    pub fn is_up(&self) -> Result<(), Away> {
        if self.client.connection_state() == State::Connected {
            return Ok(());
        }
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        Err(Away(why.as_deref().map_or("no answer yet".into(), |why| meaning(self.tls, why))))
    }

    /// Connections made so far.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }
}

/// What a failed try to connect means to a user. Anything else is what the system said.
fn meaning(tls: bool, why: &str) -> String {
    let says = |part: &str| why.contains(part);
    if !tls && says("peer certificate") {
        return "it takes TLS only (tls://HOST, and the certificate of its CA in hub_ca)".into();
    }
    if says("UnknownIssuer") || says("BadSignature") {
        let help = "name the CA's in hub_ca";
        return format!("its certificate was issued by nobody who is trusted here ({help})");
    }
    if says("not valid for name") {
        let (_, name) = why.split_once("peer certificate: ").unwrap_or(("", why));
        return format!("its certificate is of another host: {name}");
    }
    if says("InvalidContentType") {
        return "it does not speak TLS (nats://HOST, on a network that is yours alone)".into();
    }
    why.to_owned()
}

fn with_secrets(options: ConnectOptions, access: &Access) -> Result<ConnectOptions, Away> {
    let mut options = options;
    if let Some(path) = &access.ca {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(CA_BYTES).read_to_end(&mut text));
        read.map_err(|error| Away(format!("{}: {error}", path.display())))?;
        if !text.windows(PEM.len()).any(|part| part == PEM) {
            return Err(Away(format!("{} holds no certificate (PEM)", path.display())));
        }
        options = options.add_root_certificates(path.clone());
    }
    let Some(path) = &access.credentials else { return Ok(options) };
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|error| Away(format!("{}: {error}", path.display())))?;
    let secret = text.trim();
    if secret.is_empty() || secret.len() > SECRET_BYTES || secret.contains(char::is_whitespace) {
        return Err(Away(format!("{} holds no token and no seed of an nkey", path.display())));
    }
    Ok(match secret.starts_with("SU") {
        true => options.nkey(secret.to_owned()),
        false => options.token(secret.to_owned()),
    })
}
