//! A thin Rust client for steered generation.
//!
//! It composes the two services: features and concept activation vectors (CAVs)
//! come from the registry as the very messages that a worker takes, and are moved
//! into the worker's request as they are. It computes nothing on vectors.
//!
//! ```no_run
//! use steering_client::{Client, Endpoints, GenerationBuilder, Steering, prompt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(&Endpoints::default())?;
//! let mut builder = GenerationBuilder::new(prompt::user("Write a haiku."));
//! let steering = Steering {
//!     features: vec!["baseball=525".parse()?],
//!     ..Steering::default()
//! };
//! let edits = client.resolve(&steering, &mut builder).await?;
//! builder.variant("baseline", Vec::new());
//! builder.variant("steered", edits);
//! let transcript = client.generate(builder.build()).await?.collect().await?;
//! for variant in &transcript.variants {
//!     println!("{}: {}", variant.name, variant.text);
//! }
//! # Ok(())
//! # }
//! ```

pub mod capture;
pub mod compose;
pub mod connection;
pub mod credentials;
pub mod edit;
pub mod error;
pub mod files;
pub mod generation;
mod grammar;
pub mod listing;
pub mod prompt;
mod readout;
mod registry;
pub mod statistics;
mod worker;

pub use capture::CaptureStream;
pub use compose::{GenerationBuilder, Steering};
pub use connection::{Client, Endpoints, Health};
pub use credentials::{ApiKey, Credentials};
pub use edit::{
    Amount, CavEdit, CavOperation, Comparison, Condition, FeatureEdit, FeatureKey,
    FeatureOperation, FeatureSelector, Gate, GateMode, Readout,
};
pub use error::{Error, Service};
pub use files::{FileSet, ImportEvent, ImportStream};
pub use generation::{GenerationStream, Transcript, VariantTranscript};
pub use grammar::GrammarError;
pub use listing::Listing;
pub use readout::Lookup;
/// The wire contract.
pub use steering_proto::v1;
