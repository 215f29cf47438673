//! Rules of the mapping part.

super::rules! { MAPPING:
}
