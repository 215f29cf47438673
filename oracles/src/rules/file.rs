//! Rules of the file part.

super::rules! { FILE:
}
