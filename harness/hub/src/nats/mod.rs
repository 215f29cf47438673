//! NATS JetStream as an exchange. Subjects are `hgm.VERSION.LANE.SCOPE.KIND.KEY`; a lane, and
//! its stream, for what is kept (the last message of each subject, bounded) and one for what is soon
//! old. Work has two more (`work`). What nats-server 2.9 lacks (key-value buckets, fsync at every
//! write) is not used or not relied on: whoever sent a parcel still has it and sends it again when the
//! connection was lost.

mod connect;
mod work;

use crate::{Access, Away, Exchange, FORMAT, Kind, Parcel, Scope};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::{Config as PullConfig, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, Message};
use connect::{ANSWER, Connection};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::time::timeout;
use work::Desk;

/// Parcels of campaigns; of each name the last.
const KEPT_BYTES: i64 = 1 << 30;
/// What machines say of themselves.
const FRESH_BYTES: i64 = 64 << 20;
/// A machine that said nothing for so long is gone.
const FRESH_AGE: Duration = Duration::from_secs(300);
/// Parcels taken at a time.
const BATCH: usize = 500;
/// A consumer nobody asks is forgotten by the server.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// See the module's head.
pub struct Nats {
    link: Connection,
    /// Whose parcels are taken; all if none.
    scope: Option<Scope>,
    lanes: Vec<Lane>,
    desk: Desk,
}

/// Words of the lanes: what is kept, and what is soon old.
const LANES: [&str; 2] = ["kept", "fresh"];

/// A stream and how far it was read.
struct Lane {
    /// What its subjects begin with.
    prefix: String,
    /// Which of them are taken.
    filter: String,
    config: StreamConfig,
    messages: Option<Messages>,
    /// Sequence number of the next message.
    next: u64,
    /// Connections made when it was opened.
    of: u64,
}

/// A message, by what its subject says after the lane.
struct Taken {
    name: String,
    sequence: u64,
    body: Vec<u8>,
}

impl Taken {
    fn parcel(self) -> Option<Parcel> {
        Parcel::of_name(&self.name, self.body)
    }
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
        let link = Connection::open(host, port, tls, access)?;
        let whose = scope.as_ref().map_or("*", Scope::as_str);
        let lane = |(word, config)| Lane::new(word, &format!("{whose}.>"), config);
        let lanes = LANES.into_iter().zip(streams()).map(lane).collect();
        Ok(Nats { link, scope, lanes, desk: Desk::default() })
    }

    fn lane(kind: Kind) -> usize {
        usize::from(kind.is_replaced())
    }
}

/// The streams of the lanes, in their order.
fn streams() -> [StreamConfig; 2] {
    let [kept, fresh] = LANES.map(|lane| StreamConfig {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::Old,
        ..stream(lane)
    });
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

/// The stream of a lane. Its name tells the version, as its subjects do.
fn stream(lane: &str) -> StreamConfig {
    StreamConfig {
        name: format!("HGM_{FORMAT}_{}", lane.to_ascii_uppercase()),
        subjects: vec![format!("{}>", prefix(lane))],
        ..StreamConfig::default()
    }
}

/// What the subjects of a lane begin with.
fn prefix(lane: &str) -> String {
    format!("hgm.{FORMAT}.{lane}.")
}

impl Lane {
    /// `filter`: which of the lane's subjects are taken.
    fn new(word: &str, filter: &str, config: StreamConfig) -> Lane {
        let prefix = prefix(word);
        let filter = format!("{prefix}{filter}");
        Lane { prefix, filter, config, messages: None, next: 1, of: 0 }
    }

    /// The messages from where reading ended; asked for anew on every connection.
    async fn messages(
        &mut self,
        context: &Context,
        connection: u64,
    ) -> Result<&mut Messages, Away> {
        if self.of != connection {
            // What was kept may be gone, and the numbers with it.
            (self.messages, self.next, self.of) = (None, 1, connection);
        }
        if self.messages.is_none() {
            self.messages = Some(self.ask(context).await?);
        }
        self.messages.as_mut().ok_or_else(|| Away("no messages".into()))
    }

    async fn ask(&self, context: &Context) -> Result<Messages, Away> {
        let away = |error: &dyn std::fmt::Display| Away(format!("{}: {error}", self.config.name));
        let made = context.get_or_create_stream(self.config.clone()).await;
        let stream = made.map_err(|error| away(&error))?;
        let config = PullConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next },
            ack_policy: AckPolicy::None,
            filter_subject: self.filter.clone(),
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            ..PullConfig::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| away(&error))?;
        let stream = consumer.stream().max_messages_per_batch(BATCH).messages().await;
        stream.map_err(|error| away(&error))
    }

    /// Takes note of a message.
    fn taken(&mut self, message: &Message) -> Result<Taken, Away> {
        let info = message.info().map_err(|error| Away(format!("a message: {error}")))?;
        let sequence = info.stream_sequence;
        self.next = sequence + 1;
        let name = message.subject.as_str().strip_prefix(&self.prefix).unwrap_or_default();
        Ok(Taken { name: name.to_owned(), sequence, body: message.payload.to_vec() })
    }

    /// Messages that were not taken before and are there.
    async fn all(&mut self, context: &Context, connection: u64) -> Result<Vec<Taken>, Away> {
        self.take(context, connection, Duration::ZERO).await
    }

    /// Messages that were not taken before; waits for the first no longer than `wait`.
    async fn take(
        &mut self,
        context: &Context,
        connection: u64,
        mut wait: Duration,
    ) -> Result<Vec<Taken>, Away> {
        let mut found = Vec::new();
        for _ in 0..BATCH {
            let messages = self.messages(context, connection).await?;
            let next = match timeout(wait, messages.next()).await {
                Err(_) => break,
                Ok(None) => Err(Away("the hub ended its messages".into())),
                Ok(Some(next)) => next.map_err(|error| Away(error.to_string())),
            };
            wait = Duration::ZERO;
            match next {
                Ok(message) => found.push(self.taken(&message)?),
                Err(why) => {
                    self.messages = None;
                    return Err(why);
                }
            }
        }
        Ok(found)
    }
}

/// Stores a message whose subject has none. False if it has one.
async fn create(
    context: &Context,
    subject: String,
    id: &str,
    body: Vec<u8>,
    config: &StreamConfig,
) -> Result<bool, Away> {
    let mut headers = HeaderMap::new();
    // What is there already is not stored again, however late or often this arrives.
    headers.insert("Nats-Msg-Id", id);
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    publish(context, subject, headers, body, config).await.map(|kept| kept.is_some())
}

/// Stores a message; its number. None: the headers ask for what is not so.
async fn publish(
    context: &Context,
    subject: String,
    headers: HeaderMap,
    body: Vec<u8>,
    config: &StreamConfig,
) -> Result<Option<u64>, Away> {
    let sent = context.publish_with_headers(subject, headers, body.into()).await;
    let kept = match sent {
        Ok(ack) => timeout(ANSWER, ack).await.map_err(|_| Away("no answer".into()))?,
        Err(error) => Err(error),
    };
    match kept.as_ref().map_err(|error| error.kind()) {
        Ok(ack) => Ok((!ack.duplicate).then_some(ack.sequence)),
        Err(PublishErrorKind::WrongLastSequence) => Ok(None),
        Err(PublishErrorKind::StreamNotFound) => {
            let made = context.get_or_create_stream(config.clone()).await;
            let why = made.err().map_or("made a stream".into(), |error| error.to_string());
            Err(Away(why))
        }
        Err(kind) => Err(Away(kind.to_string())),
    }
}

impl Exchange for Nats {
    fn put(&mut self, parcel: &Parcel) -> Result<(), Away> {
        self.link.is_up()?;
        let lane = &self.lanes[Nats::lane(parcel.kind)];
        let (name, body) = (parcel.name(), parcel.body().to_vec());
        let subject = format!("{}{name}", lane.prefix);
        let (context, config) = (&self.link.context, &lane.config);
        let put = async {
            match parcel.kind.is_replaced() {
                true => publish(context, subject, HeaderMap::new(), body, config).await.map(drop),
                false => create(context, subject, &name, body, config).await.map(drop),
            }
        };
        self.link.runtime.block_on(put)
    }

    fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away> {
        self.link.is_up()?;
        let Nats { link, lanes, .. } = self;
        let (context, connection) = (&link.context, link.made());
        link.runtime.block_on(async {
            let mut found = Vec::new();
            // The first lane is waited for; the other is only looked at.
            for (lane, wait) in lanes.iter_mut().zip([wait, Duration::ZERO]) {
                let taken = lane.take(context, connection, wait).await?;
                found.extend(taken.into_iter().filter_map(Taken::parcel));
            }
            Ok(found)
        })
    }

    fn epoch(&self) -> u64 {
        self.link.made()
    }
}
