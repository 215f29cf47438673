//! Lists a guest sends: how long one claims to be is held against its cap before memory is taken
//! for it. What `wire` checks of a whole message comes after that.

use crate::cover::{CELLS_MAX, SYMBOLS_PER_PART};
use crate::limits::{EVENTS_MAX, LINES_MAX, RUNS_MAX};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// Looks of one line, VMAs of one look, labels of one VMA, nodes of one machine.
pub const VIEWS_MAX: usize = 256;
pub const VMAS_MAX: usize = 4096;
pub const LABELS_MAX: usize = 128;
pub const NODES_MAX: usize = 64;

struct Capped<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Capped<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let claimed = list.size_hint().unwrap_or(0);
        if claimed > MAX {
            return Err(A::Error::invalid_length(claimed, &self));
        }
        let mut all = Vec::with_capacity(claimed);
        while let Some(one) = list.next_element()? {
            if all.len() >= MAX {
                return Err(A::Error::invalid_length(all.len() + 1, &self));
            }
            all.push(one);
        }
        Ok(all)
    }
}

fn list<'de, D, T, const MAX: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    from.deserialize_seq(Capped::<T, MAX>(PhantomData))
}

/// A function for serde's `deserialize_with` for each cap.
macro_rules! capped {
    ($($name:ident $max:expr;)*) => {$(
        pub fn $name<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
        where
            D: Deserializer<'de>,
            T: Deserialize<'de>,
        {
            list::<D, T, { $max }>(from)
        }
    )*};
}

capped! {
    lines LINES_MAX;
    events EVENTS_MAX;
    runs RUNS_MAX;
    views VIEWS_MAX;
    vmas VMAS_MAX;
    labels LABELS_MAX;
    nodes NODES_MAX;
    symbols SYMBOLS_PER_PART;
    cells CELLS_MAX as usize;
}
