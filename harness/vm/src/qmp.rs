//! QEMU's monitor: typed commands, one answer each. Events are kept by name only, so that one a
//! newer QEMU invents is no error; nothing QEMU says is unbounded.

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest line taken from QEMU, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Event names kept.
const EVENTS_MAX: usize = 64;

/// Why a command got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU closed its monitor")]
    Closed,
    #[error("QEMU's monitor did not answer in time")]
    Timeout,
    #[error("QEMU's monitor speaks no QMP: {0}")]
    Garbled(String),
    #[error("QEMU refused the command: {0}")]
    Refused(String),
    #[error("QEMU's monitor: {0}")]
    Io(#[from] io::Error),
}

/// The monitor of one VM.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<String>,
}

impl Qmp {
    /// Waits for the greeting and takes the monitor out of its negotiation mode.
    pub fn connect(stream: UnixStream, timeout: Duration) -> Result<Qmp, QmpError> {
        let mut qmp = Qmp { stream, buffer: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.line(Instant::now() + timeout)?;
        let _: qapi::qmp::QapiCapabilities = decode(greeting)?;
        qmp.execute(&qapi::qmp::qmp_capabilities { enable: None }, timeout)?;
        Ok(qmp)
    }

    /// Runs one command.
    pub fn execute<C: qapi::Command>(
        &mut self,
        command: &C,
        timeout: Duration,
    ) -> Result<C::Ok, QmpError> {
        let deadline = Instant::now() + timeout;
        let line = encode(command)?;
        self.stream.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        self.stream.write_all(&line)?;
        self.answer(deadline)
    }

    /// Gives QEMU a descriptor under a name its commands can use.
    pub fn give_fd(
        &mut self,
        name: &str,
        fd: BorrowedFd<'_>,
        timeout: Duration,
    ) -> Result<(), QmpError> {
        let deadline = Instant::now() + timeout;
        let line = encode(&qapi::qmp::getfd { fdname: name.to_string() })?;
        let fds = [fd.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&fds)];
        let to = self.stream.as_raw_fd();
        let flags = MsgFlags::empty();
        let sent = sendmsg::<()>(to, &[IoSlice::new(&line)], &message, flags, None);
        let sent = sent.map_err(io::Error::from)?;
        self.stream.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        self.stream.write_all(&line[sent..])?;
        self.answer::<qapi::Empty>(deadline).map(drop)
    }

    /// The answer to the command just sent.
    fn answer<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<T, QmpError> {
        loop {
            let mut answer = self.line(deadline)?;
            if let Some(name) = answer.get("event").and_then(Value::as_str) {
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(name.chars().take(64).collect());
            } else if let Some(error) = answer.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(QmpError::Refused(text.to_string()));
            } else if let Some(value) = answer.get_mut("return") {
                return decode(value.take());
            }
        }
    }

    /// One line as JSON. Bytes of a line cut by the deadline stay for the next call.
    fn line(&mut self, deadline: Instant) -> Result<Value, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                return serde_json::from_slice(&line).map_err(|e| QmpError::Garbled(e.to_string()));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(QmpError::Garbled("a line without end".into()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::Timeout);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut chunk = [0u8; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(QmpError::Timeout),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(QmpError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn encode<C: qapi::Command>(command: &C) -> Result<Vec<u8>, QmpError> {
    let order = qapi::Execute::<&C>::from(command);
    let mut line = serde_json::to_vec(&order).map_err(|e| QmpError::Garbled(e.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<T, QmpError> {
    serde_json::from_value(value).map_err(|e| QmpError::Garbled(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":99},"package":""},"capabilities":["oob","a-new-one"]}}"#;
    const SECOND: Duration = Duration::from_secs(5);

    /// A QEMU that says `lines` after each command it reads, the greeting first.
    fn fake(lines: Vec<&'static str>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut writer = theirs;
            for line in lines {
                writeln!(writer, "{line}").unwrap();
                if line.contains("event") {
                    continue;
                }
                let mut command = String::new();
                reader.read_line(&mut command).unwrap();
            }
        });
        ours
    }

    #[test]
    fn events_of_the_future_are_no_error() {
        let event = r#"{"event":"NEVER_HEARD_OF","data":{"x":1},"timestamp":{"seconds":0}}"#;
        let status = r#"{"return":{"status":"running","running":true,"singlestep":false}}"#;
        let stream = fake(vec![GREETING, r#"{"return":{}}"#, event, status]);
        let mut qmp = Qmp::connect(stream, SECOND).unwrap();
        let info = qmp.execute(&qapi::qmp::query_status {}, SECOND).unwrap();
        assert!(info.running);
        assert_eq!(qmp.events, ["NEVER_HEARD_OF"]);
    }

    #[test]
    fn refusal_silence_and_garbage_are_told_apart() {
        let no = r#"{"error":{"class":"GenericError","desc":"not today"}}"#;
        let mut qmp = Qmp::connect(fake(vec![GREETING, r#"{"return":{}}"#, no]), SECOND).unwrap();
        let stop = qapi::qmp::stop {};
        let refused = qmp.execute(&stop, SECOND).unwrap_err().to_string();
        assert!(refused.contains("not today"), "{refused}");

        let garbled = Qmp::connect(fake(vec!["hello"]), SECOND).unwrap_err();
        assert!(matches!(garbled, QmpError::Garbled(_)), "{garbled}");

        let (ours, theirs) = UnixStream::pair().unwrap();
        let silent = Qmp::connect(ours.try_clone().unwrap(), Duration::from_millis(20));
        assert!(matches!(silent.unwrap_err(), QmpError::Timeout));
        drop(theirs);
        assert!(matches!(Qmp::connect(ours, SECOND).unwrap_err(), QmpError::Closed));
    }
}
