//! The wire form between host and guest: frames of postcard, length-checked and CRC-checked.
//!
//! The guest is hostile: a length is checked before anything is allocated for it, a bad frame is
//! an error and ends the link (there is no resynchronisation), and what a frame held is checked
//! against the caps once more before anybody looks at it.

use crate::capped::{LABELS_MAX, NODES_MAX, VIEWS_MAX, VMAS_MAX};
use crate::cover::{CELLS_MAX, SYMBOL_BYTES_MAX, SYMBOLS_PER_PART};
use crate::limits::{
    EVENTS_MAX, FRAME_BYTES_MAX, LINES_MAX, PRINTED_BYTES_MAX, RUNS_MAX, STUCK_BYTES_MAX,
    VIEW_PAGES_MAX,
};
use crate::link::{FromGuest, RunOutcome};
use crate::observation::{Counters, LineObs, Observation, Output, View, VmaObs};
use crate::program::Program;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Raised by every change of a message type.
pub const VERSION: u16 = 4;
/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"hgmF";
/// magic 4, version u16, kind u8 (0, reserved), pad u8 (0), length u32, CRC-32 of the payload
/// u32; all little-endian.
pub const HEADER_BYTES: usize = 16;
/// Bytes of one string that comes from a guest.
pub const STRING_BYTES_MAX: usize = 64 << 10;

/// Why bytes are not a message, or a message not sendable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("frame does not start with the magic: {0:02x?}")]
    Magic([u8; 4]),
    #[error("frame of version {0}, this side speaks {VERSION}")]
    Version(u16),
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    #[error("frame of {0} bytes, the cap is {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("checksum of the payload is wrong")]
    Checksum,
    #[error("payload is not the message expected: {0}")]
    Payload(String),
    #[error("{what}: {len} over the cap {max}")]
    OverCap { what: &'static str, len: usize, max: usize },
}

/// One frame around one message (`ToGuest` or `FromGuest`).
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let payload = postcard::to_stdvec(message).map_err(|e| WireError::Payload(e.to_string()))?;
    if payload.len() > FRAME_BYTES_MAX {
        return Err(WireError::TooLong(payload.len()));
    }
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Cuts a byte stream into messages. After an error it gives the same error for ever: the link
/// cannot be trusted any more.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out.
    start: usize,
    broken: Option<WireError>,
}

struct Header {
    len: usize,
    crc: u32,
}

impl Decoder {
    pub fn new() -> Self {
        Decoder::default()
    }

    /// Takes bytes as they come; call [`Decoder::next`] until it has nothing more before the next
    /// `push`, then less than one frame is ever kept.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, `None` when more bytes are needed.
    // Not an iterator: the message type is chosen per call and an error is for ever.
    #[allow(clippy::should_implement_trait)]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let result = self.take();
        if let Err(error) = &result {
            self.broken = Some(error.clone());
            self.buffer = Vec::new();
            self.start = 0;
        }
        result
    }

    /// Bytes held back for a frame that is not complete.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let bytes = &self.buffer[self.start..];
        let Some(header) = header(bytes)? else { return Ok(None) };
        let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + header.len) else {
            return Ok(None);
        };
        if crc32fast::hash(payload) != header.crc {
            return Err(WireError::Checksum);
        }
        let (message, rest) = postcard::take_from_bytes::<T>(payload)
            .map_err(|e| WireError::Payload(e.to_string()))?;
        if !rest.is_empty() {
            return Err(WireError::Payload(format!("{} bytes left over", rest.len())));
        }
        self.start += HEADER_BYTES + header.len;
        Ok(Some(message))
    }
}

/// Checks each header field as soon as its bytes are there, so that rubbish is refused at once.
fn header(bytes: &[u8]) -> Result<Option<Header>, WireError> {
    let got = &bytes[..bytes.len().min(4)];
    if got != &MAGIC[..got.len()] {
        let mut magic = [0; 4];
        magic[..got.len()].copy_from_slice(got);
        return Err(WireError::Magic(magic));
    }
    let Some(h) = bytes.get(..HEADER_BYTES) else { return Ok(None) };
    let version = u16::from_le_bytes([h[4], h[5]]);
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    if h[6] != 0 || h[7] != 0 {
        return Err(WireError::Kind(h[6].max(h[7])));
    }
    let len = u32::from_le_bytes([h[8], h[9], h[10], h[11]]) as usize;
    if len > FRAME_BYTES_MAX {
        return Err(WireError::TooLong(len));
    }
    Ok(Some(Header { len, crc: u32::from_le_bytes([h[12], h[13], h[14], h[15]]) }))
}

fn cap(what: &'static str, len: usize, max: usize) -> Result<(), WireError> {
    if len > max { Err(WireError::OverCap { what, len, max }) } else { Ok(()) }
}

/// Checks everything a guest sent against the caps.
pub fn check_from_guest(message: &FromGuest) -> Result<(), WireError> {
    match message {
        FromGuest::Ready(p) => {
            for s in [&p.release, &p.version, &p.thp_enabled, &p.thp_shmem] {
                cap("string of the profile", s.len(), STRING_BYTES_MAX)?;
            }
            Ok(())
        }
        FromGuest::Executing { .. } | FromGuest::Provoked { .. } => Ok(()),
        FromGuest::Done { outcome, .. } => match outcome {
            RunOutcome::Finished(observation) => check_observation(observation),
            RunOutcome::WorkerDied { .. } => Ok(()),
            RunOutcome::WorkerHung { stuck, .. } => {
                cap("stuck threads", stuck.len(), STUCK_BYTES_MAX)
            }
            RunOutcome::Refused(why) => cap("refusal", why.len(), STRING_BYTES_MAX),
        },
        FromGuest::Executed { printed, .. } => {
            cap("printed text", printed.len(), PRINTED_BYTES_MAX)
        }
        FromGuest::Log(line) => cap("log line", line.len(), STRING_BYTES_MAX),
        FromGuest::Symbols { part, .. } => {
            cap("symbols", part.len(), SYMBOLS_PER_PART)?;
            let longest = part.iter().map(|symbol| symbol.name.len()).max();
            cap("symbol name", longest.unwrap_or(0), SYMBOL_BYTES_MAX)
        }
        FromGuest::Covered { cells, .. } => {
            cap("cells", cells.len(), CELLS_MAX as usize)?;
            if cells.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(WireError::Payload("cells out of order".into()));
            }
            Ok(())
        }
    }
}

/// Checks every collection of an observation against the caps of `limits`. Whether it has one
/// line per line of its program is for the caller, who knows the program.
pub fn check_observation(o: &Observation) -> Result<(), WireError> {
    cap("lines", o.lines.len(), LINES_MAX)?;
    check_counters(&o.before)?;
    check_counters(&o.after)?;
    o.lines.iter().try_for_each(check_line)?;
    check_views(&o.end)
}

fn check_counters(c: &Counters) -> Result<(), WireError> {
    cap("nodes", c.nodes_2m.len(), NODES_MAX)
}

fn check_line(line: &LineObs) -> Result<(), WireError> {
    cap("fault events", line.events.len(), EVENTS_MAX)?;
    match &line.out {
        Output::Content(runs) => {
            cap("content runs", runs.len(), RUNS_MAX)?;
            let pages = runs.iter().fold(0usize, |n, r| n.saturating_add(r.pages as usize));
            cap("content pages", pages, VIEW_PAGES_MAX as usize)?;
        }
        Output::Nodes(nodes) => cap("node entries", nodes.len(), RUNS_MAX)?,
        Output::Nothing | Output::Field(_) | Output::Stat { .. } => {}
    }
    check_views(&line.views)
}

fn check_views(views: &[View]) -> Result<(), WireError> {
    cap("views", views.len(), VIEWS_MAX)?;
    views.iter().try_for_each(check_view)
}

fn check_view(view: &View) -> Result<(), WireError> {
    match view {
        View::Pages { runs, .. } => {
            cap("page runs", runs.len(), RUNS_MAX)?;
            let pages = runs.iter().fold(0usize, |n, r| n.saturating_add(r.pages as usize));
            cap("pages of a view", pages, VIEW_PAGES_MAX as usize)
        }
        View::Vmas { vmas, .. } => {
            cap("VMAs", vmas.len(), VMAS_MAX)?;
            vmas.iter().try_for_each(check_vma)
        }
        View::Rollup { kb, .. } | View::Status { kb, .. } => check_labels(kb),
        View::Mincore { result, .. } => match result {
            Ok(runs) => {
                cap("mincore runs", runs.len(), RUNS_MAX)?;
                let pages = runs.iter().fold(0usize, |n, r| n.saturating_add(r.0 as usize));
                cap("pages of a view", pages, VIEW_PAGES_MAX as usize)
            }
            Err(_) => Ok(()),
        },
        View::Counters(c) => check_counters(c),
        View::Failed { what, .. } => cap("failed view", what.len(), STRING_BYTES_MAX),
    }
}

fn check_vma(vma: &VmaObs) -> Result<(), WireError> {
    cap("VmFlags", vma.flags.len(), LABELS_MAX)?;
    cap("numa_maps line", vma.numa.as_ref().map_or(0, String::len), STRING_BYTES_MAX)?;
    check_labels(&vma.kb)
}

fn check_labels(kb: &[(String, u64)]) -> Result<(), WireError> {
    cap("labels", kb.len(), LABELS_MAX)?;
    kb.iter().try_for_each(|(label, _)| cap("label", label.len(), STRING_BYTES_MAX))
}

/// Identity of a program: 16 hex digits of BLAKE3 over its canonical text without comments.
pub fn program_id(program: &Program) -> String {
    let hash = blake3::hash(crate::text::print_bare(program).as_bytes());
    hash.to_hex().chars().take(16).collect()
}
