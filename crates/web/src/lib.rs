//! A model in a browser, behind the page that the server shows: the server's requests and answers, in a Web Worker.
//!
//! [`Flamingo`] is a model that was put together from its files' bytes and answers requests as the server does: the same JSON in,
//! the same JSON out. Continuations are made token by token ([`Completion::step`]), because whoever computes in a worker hears
//! nothing: between two tokens it can look whether somebody has changed their mind. [`Pictures`] are the pictures of a request,
//! decoded here where the result is to be the very one of every other platform, and by the browser where only that can.
//!
//! All of it is ordinary Rust; the module `browser`, which exists on `wasm32` only, hands it to JavaScript. `worker.js` beside
//! this crate is what the page talks to, and `cargo xtask web` puts everything together.

mod answer;
#[cfg(target_arch = "wasm32")]
mod browser;
mod completion;
mod error;
mod flamingo;
mod pictures;
mod request;

pub use completion::Completion;
pub use error::WebError;
pub use flamingo::{Files, Flamingo};
pub use pictures::Pictures;
