//! Rules of the observe part.

super::rules! { OBSERVE:
}
