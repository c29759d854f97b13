//! CAVs, as they are kept.

use steering_proto::v1;

use super::{CavTraining, timestamp};

/// A CAV's direction at one hook point.
#[derive(Debug, Clone, PartialEq)]
pub struct CavDirectionRecord {
    /// Hook point.
    pub hook_name: String,
    /// Number of components.
    pub width: u32,
    /// Euclidean norm.
    pub norm: f32,
    /// Components; empty in listings.
    pub values: Vec<f32>,
}

/// One version of a CAV.
#[derive(Debug, Clone, PartialEq)]
pub struct CavRecord {
    /// Name.
    pub name: String,
    /// SHA-256 (hex) of hook points and numbers.
    pub digest: String,
    /// Model.
    pub model_id: String,
    /// File or method it came from.
    pub origin: String,
    /// Milliseconds since 1970, UTC.
    pub created_at_ms: i64,
    /// At least one.
    pub directions: Vec<CavDirectionRecord>,
    /// How it was trained, if it was trained here.
    pub training: Option<CavTraining>,
    /// When it was deleted, in milliseconds since 1970, UTC.
    pub deleted_at_ms: Option<i64>,
}

impl CavRecord {
    /// The wire's message, with vectors if the record has them.
    pub fn into_wire(self) -> v1::Cav {
        let name = self.name;
        let directions = self.directions.into_iter().map(|direction| {
            let vector = (!direction.values.is_empty()).then(|| v1::Vector {
                name: name.clone(),
                values: direction.values,
            });
            v1::CavDirection {
                hook_name: direction.hook_name,
                width: direction.width,
                norm: direction.norm,
                vector,
            }
        });
        v1::Cav {
            directions: directions.collect(),
            digest: self.digest,
            model_id: self.model_id,
            origin: self.origin,
            created_at: Some(timestamp(self.created_at_ms)),
            training: self.training.map(CavTraining::into_wire),
            delete_time: self.deleted_at_ms.map(timestamp),
            name,
        }
    }
}
