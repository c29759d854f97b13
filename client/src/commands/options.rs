//! Options that several commands share.

mod observe;
mod place;
mod prompt;
mod sampling;

pub(crate) use observe::ObserveOptions;
pub(crate) use place::{PlaceOptions, check_hook};
pub(crate) use prompt::{PromptOptions, stdin_failure, text_or_stdin};
pub(crate) use sampling::SamplingOptions;
