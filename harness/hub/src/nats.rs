//! NATS JetStream as an exchange. Subjects are `hgm.VERSION.LANE.SCOPE.KIND.KEY`; a lane, and
//! its stream, for what is kept (the last message of each subject, bounded) and one for what is soon
//! old. What nats-server
//! 2.9 lacks (key-value buckets, fsync at every write) is not used or not relied on: whoever sent
//! a parcel still has it and sends it again when the connection was lost.

use crate::{Access, Away, Exchange, FORMAT, Kind, Parcel, Scope};
use async_nats::connection::State;
use async_nats::jetstream::consumer::pull::{Config as PullConfig, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, Message};
use async_nats::{ConnectOptions, Event, HeaderMap};
use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Parcels of campaigns; of each name the last.
const KEPT: &str = "HGM_KEPT";
const KEPT_BYTES: i64 = 1 << 30;
/// What machines say of themselves.
const FRESH: &str = "HGM_FRESH";
const FRESH_BYTES: i64 = 64 << 20;
/// A machine that said nothing for so long is gone.
const FRESH_AGE: Duration = Duration::from_secs(300);
/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a connection may be silent; the server is then taken for gone.
const PING: Duration = Duration::from_secs(5);
/// Longest pause between two tries to connect.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Parcels taken at a time.
const BATCH: usize = 500;
/// A consumer nobody asks is forgotten by the server.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Bytes of a file with a token or seed that are read.
const SECRET_BYTES: usize = 4096;

/// See the module's head.
pub struct Nats {
    runtime: Runtime,
    client: async_nats::Client,
    context: Context,
    /// Whose parcels are taken; all if none.
    scope: Option<Scope>,
    /// Connections made.
    connected: Arc<AtomicU64>,
    lanes: Vec<Lane>,
}

/// Words of the lanes: what is kept, and what is soon old.
const LANES: [&str; 2] = ["kept", "fresh"];

/// A stream and how far it was read.
struct Lane {
    /// What its subjects begin with.
    prefix: String,
    config: StreamConfig,
    messages: Option<Messages>,
    /// Sequence number of the next message.
    next: u64,
    /// Connections made when it was opened.
    of: u64,
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Nats {
    /// Prepares a client; a server that is not there yet is connected to when it comes. Errors
    /// are those of the files that `access` names.
    pub fn open(
        host: &str,
        port: u16,
        tls: bool,
        access: &Access,
        scope: Option<Scope>,
    ) -> Result<Nats, Away> {
        let connected = Arc::new(AtomicU64::new(0));
        let count = connected.clone();
        let options = ConnectOptions::new()
            .name("hgm")
            .retry_on_initial_connect()
            .connection_timeout(ANSWER)
            .request_timeout(Some(ANSWER))
            .ping_interval(PING)
            .reconnect_delay_callback(|tries| {
                RETRY_MAX.min(Duration::from_millis(50) * tries as u32)
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
        let lane = |(word, config)| {
            let prefix = prefix(word);
            Lane { prefix, config, messages: None, next: 1, of: 0 }
        };
        let lanes = LANES.into_iter().zip(streams()).map(lane).collect();
        Ok(Nats { runtime, client, context, scope, connected, lanes })
    }

    fn lane(kind: Kind) -> usize {
        usize::from(kind.is_replaced())
    }

    /// Without a connection every request would wait for its time-out.
    fn is_up(&self) -> Result<(), Away> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            state => Err(Away(format!("the hub is {state}"))),
        }
    }
}

/// The streams of the lanes, in their order.
fn streams() -> [StreamConfig; 2] {
    let of = |name: &str, lane: &str| StreamConfig {
        name: name.into(),
        subjects: vec![format!("{}>", prefix(lane))],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::Old,
        ..StreamConfig::default()
    };
    let (kept, fresh) = (of(KEPT, LANES[0]), of(FRESH, LANES[1]));
    [
        StreamConfig { max_bytes: KEPT_BYTES, storage: StorageType::File, ..kept },
        StreamConfig {
            max_bytes: FRESH_BYTES,
            max_age: FRESH_AGE,
            storage: StorageType::Memory,
            ..fresh
        },
    ]
}

/// What the subjects of a lane begin with.
fn prefix(lane: &str) -> String {
    format!("hgm.{FORMAT}.{lane}.")
}

fn with_secrets(options: ConnectOptions, access: &Access) -> Result<ConnectOptions, Away> {
    let mut options = options;
    if let Some(path) = &access.ca {
        std::fs::metadata(path).map_err(|error| Away(format!("{}: {error}", path.display())))?;
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

impl Lane {
    /// The messages from where reading ended; asked for anew on every connection.
    async fn messages(
        &mut self,
        context: &Context,
        scope: Option<&Scope>,
        connection: u64,
    ) -> Result<&mut Messages, Away> {
        if self.of != connection {
            // What was kept may be gone, and the numbers with it.
            (self.messages, self.next, self.of) = (None, 1, connection);
        }
        if self.messages.is_none() {
            self.messages = Some(self.ask(context, scope).await?);
        }
        self.messages.as_mut().ok_or_else(|| Away("no messages".into()))
    }

    async fn ask(&self, context: &Context, scope: Option<&Scope>) -> Result<Messages, Away> {
        let away = |error: &dyn std::fmt::Display| Away(format!("{}: {error}", self.config.name));
        let made = context.get_or_create_stream(self.config.clone()).await;
        let stream = made.map_err(|error| away(&error))?;
        let config = PullConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next },
            ack_policy: AckPolicy::None,
            filter_subject: format!("{}{}.>", self.prefix, scope.map_or("*", Scope::as_str)),
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            ..PullConfig::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| away(&error))?;
        let stream = consumer.stream().max_messages_per_batch(BATCH).messages().await;
        stream.map_err(|error| away(&error))
    }

    /// Takes note of a message, and its parcel, if it is one.
    fn parcel(&mut self, message: &Message) -> Result<Option<Parcel>, Away> {
        let info = message.info().map_err(|error| Away(format!("a message: {error}")))?;
        self.next = info.stream_sequence + 1;
        let name = message.subject.as_str().strip_prefix(&self.prefix).unwrap_or_default();
        Ok(Parcel::of_name(name, message.payload.to_vec()))
    }
}

impl Exchange for Nats {
    fn put(&mut self, parcel: &Parcel) -> Result<(), Away> {
        self.is_up()?;
        let mut headers = HeaderMap::new();
        if !parcel.kind.is_replaced() {
            // What is there already is not stored again, however late or often this arrives.
            headers.insert("Nats-Msg-Id", parcel.name());
            headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        }
        let lane = &self.lanes[Nats::lane(parcel.kind)];
        let subject = format!("{}{}", lane.prefix, parcel.name());
        let body = parcel.body().to_vec().into();
        let (context, config) = (&self.context, &lane.config);
        self.runtime.block_on(async {
            let sent = context.publish_with_headers(subject, headers, body).await;
            let kept = match sent {
                Ok(ack) => timeout(ANSWER, ack).await.map_err(|_| Away("no answer".into()))?,
                Err(error) => Err(error),
            };
            match kept.as_ref().map_err(|error| error.kind()) {
                Ok(_) | Err(PublishErrorKind::WrongLastSequence) => Ok(()),
                Err(PublishErrorKind::StreamNotFound) => {
                    let made = context.get_or_create_stream(config.clone()).await;
                    let why = made.err().map_or("made a stream".into(), |error| error.to_string());
                    Err(Away(why))
                }
                Err(kind) => Err(Away(kind.to_string())),
            }
        })
    }

    fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away> {
        self.is_up()?;
        let Nats { runtime, context, scope, connected, lanes, .. } = self;
        let connection = connected.load(Ordering::SeqCst);
        runtime.block_on(async {
            let mut found = Vec::new();
            for (at, lane) in lanes.iter_mut().enumerate() {
                // The first lane is waited for; the other is only looked at.
                let mut wait = if at == 0 { wait } else { Duration::ZERO };
                for _ in 0..BATCH {
                    let messages = lane.messages(context, scope.as_ref(), connection).await?;
                    let next = match timeout(wait, messages.next()).await {
                        Err(_) => break,
                        Ok(None) => Err(Away("the hub ended its messages".into())),
                        Ok(Some(next)) => next.map_err(|error| Away(error.to_string())),
                    };
                    wait = Duration::ZERO;
                    match next {
                        Ok(message) => found.extend(lane.parcel(&message)?),
                        Err(why) => {
                            lane.messages = None;
                            return Err(why);
                        }
                    }
                }
            }
            Ok(found)
        })
    }

    fn epoch(&self) -> u64 {
        self.connected.load(Ordering::SeqCst)
    }
}
