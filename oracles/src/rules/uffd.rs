//! Rules of the uffd part.

super::rules! { UFFD:
}
