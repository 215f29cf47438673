//! (being written)
use crate::step::{Cx, Out};
use crate::world::World;

pub fn step(_w: &mut World, _cx: &Cx<'_>) -> Out {
    Ok(())
}
