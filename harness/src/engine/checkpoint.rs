//! The engine as bytes and back: magic, blake3 of the payload, postcard payload. A checkpoint is
//! our own file, yet it may be torn or from another version: it is checked before it is read.

use super::{Breed, schedule::YoungFirst};
use super::{Engine, Guide, Plan, State, map_observer};
use libafl::events::NopEventManager;
use libafl::feedbacks::{CrashFeedback, MaxMapFeedback};
use libafl::fuzzer::StdFuzzer;
use std::sync::Arc;
use thiserror::Error;

/// First bytes of a checkpoint; the digit is raised when the payload changes.
const MAGIC: &[u8; 8] = b"hgmckpt4";
const HASH: usize = 32;

/// Why a checkpoint cannot be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("not a checkpoint of this version of hgm")]
    Magic,
    #[error("the checkpoint is damaged: its checksum does not fit")]
    Damaged,
    #[error("the checkpoint does not decode: {0}")]
    Decode(#[from] postcard::Error),
}

impl Engine {
    /// Everything the engine knows.
    pub fn checkpoint(&self) -> Result<Vec<u8>, CheckpointError> {
        let payload = postcard::to_allocvec(&(&self.state, &self.plan))?;
        let mut bytes = Vec::with_capacity(MAGIC.len() + HASH + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(blake3::hash(&payload).as_bytes());
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    /// The engine as it was. Programs that were outstanding are asked again, first. What guides it
    /// from here on is said anew.
    pub fn restore(
        bytes: &[u8],
        breed: Arc<dyn Breed>,
        guide: Guide,
        blocks: u32,
    ) -> Result<Self, CheckpointError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(CheckpointError::Magic)?;
        let (hash, payload) = rest.split_at_checked(HASH).ok_or(CheckpointError::Damaged)?;
        if blake3::hash(payload).as_bytes() != hash {
            return Err(CheckpointError::Damaged);
        }
        let (state, mut plan): (State, Plan) = postcard::from_bytes(payload)?;
        for ticket in std::mem::take(&mut plan.outstanding).into_values().rev() {
            plan.seeds.push_front((ticket.program, ticket.origin));
        }
        (plan.guide, plan.blocks) = (guide, blocks);
        let map = map_observer(blocks);
        // The history of the map is in the state's metadata under the feedback's name.
        let feedback = MaxMapFeedback::new(&map);
        Ok(Engine {
            state,
            fuzzer: StdFuzzer::new(YoungFirst, feedback, CrashFeedback::new()),
            manager: NopEventManager::new(),
            observers: (map, ()),
            breed,
            plan,
        })
    }
}
