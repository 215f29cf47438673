//! Rules of the process part.

super::rules! { PROCESS:
}
