//! Rules of the advice part.

super::rules! { ADVICE:
}
