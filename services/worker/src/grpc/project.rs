//! `ProjectDirection`: the logit lens of a direction.

use steering_proto::{Invalid, invalid::required, payload::Vector, v1};

use crate::{error::RequestError, worker::Worker};

/// Tokens at each end unless asked for.
const DEFAULT_TOP_K: u32 = 10;
/// Most tokens at each end.
const MAX_TOP_K: u32 = 1000;

/// The tokens that a direction makes most and least likely.
pub(super) fn project(
    worker: &Worker,
    request: v1::ProjectDirectionRequest,
) -> Result<v1::ProjectDirectionResponse, RequestError> {
    let v1::ProjectDirectionRequest { vector, top_k } = request;
    let vector = Vector::try_from(required(vector, "vector")?).map_err(|e| e.within("vector"))?;
    let d_model = worker.model.config().d_model;
    if vector.values.len() != d_model {
        let text = format!(
            "has {} components; the residual stream of {} is {d_model} wide",
            vector.values.len(),
            worker.model_id
        );
        return Err(Invalid::field("vector", text).into());
    }
    if vector.norm() == 0.0 {
        let text = "is the zero vector; a direction is needed";
        return Err(Invalid::field("vector", text).into());
    }
    if top_k > MAX_TOP_K {
        let text = format!("is {top_k}; at most {MAX_TOP_K}");
        return Err(Invalid::field("top_k", text).into());
    }
    let n = if top_k == 0 { DEFAULT_TOP_K } else { top_k } as usize;
    let logits = worker
        .model
        .project(&of_rms_1(&vector.values))
        .map_err(|e| RequestError::Internal(e.to_string()))?;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| {
        let (a_logit, b_logit) = (logits[a as usize], logits[b as usize]);
        b_logit.total_cmp(&a_logit).then(a.cmp(&b))
    });
    let token = |&id: &u32| v1::TokenLogit {
        token_id: id,
        text: worker.codec.decode(&[id], false).unwrap_or_default(),
        logit: logits[id as usize],
    };
    Ok(v1::ProjectDirectionResponse {
        top: order.iter().take(n).map(token).collect(),
        bottom: order.iter().rev().take(n).map(token).collect(),
    })
}

/// A direction of a length at which the final norm's ε does not show.
fn of_rms_1(direction: &[f32]) -> Vec<f32> {
    let squares: f64 = direction.iter().map(|v| f64::from(*v).powi(2)).sum();
    let rms = (squares / direction.len() as f64).sqrt();
    direction
        .iter()
        .map(|v| (f64::from(*v) / rms) as f32)
        .collect()
}
