//! Exchange between machines: what one found goes to the others, and what they found comes in.
//!
//! A machine never waits for the others: parcels go through a [`Post`], whose thread talks to an
//! [`Exchange`] and keeps what could not be delivered. What is offered lies on the sender's disk
//! already, so nothing is lost with a hub; and a hub that lost its own disk gets it again. Work that
//! one asks for and another does lies at the hub as well ([`Work`]). Never here: what parcels and
//! tasks mean.

#![forbid(unsafe_code)]

mod address;
mod folder;
mod nats;
mod parcel;
mod post;
mod work;

pub use address::{Access, Address, AddressError};
pub use folder::Folder;
pub use nats::Nats;
pub use parcel::{BODY_BYTES_MAX, FORMAT, Kind, Parcel, Scope};
pub use post::{Figures, News, Post};
pub use work::{Due, LEASE, Lease, Ledger, Load, RENEW, Task, Work};

use std::time::Duration;

/// One way to the other machines. Blocking; called by one thread.
pub trait Exchange: Send {
    /// Puts a parcel where the others find it. `Ok` once it is kept there, or was before.
    fn put(&mut self, parcel: &Parcel) -> Result<(), Away>;
    /// Parcels that were not taken before, own ones among them; waits for the first no longer than
    /// `wait`. None: there are no more for now.
    fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away>;
    /// Changes when the exchange was lost from sight: what was kept there may be gone, and
    /// [`Exchange::take`] begins anew.
    fn epoch(&self) -> u64;
}

/// The exchange cannot be reached, or did not do what was asked; it is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Away(pub String);
