//! `TrainCavs`.

use std::time::Duration;

use steering_proto::{
    Invalid,
    cav_training::{CavTrainingConfig, LabelledActivation},
    invalid::required,
    v1::{self, train_cavs_request::Message},
};
use tonic::{Status, Streaming};

use super::patience::patiently;
use crate::{
    registry::{LabelledActivations, Registry, TrainedCavs},
    store::CavRecord,
};

/// How long the next example may take: others cannot train meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn train(
    registry: &Registry,
    mut stream: Streaming<v1::TrainCavsRequest>,
) -> Result<v1::TrainCavsResponse, Status> {
    let _permit = registry.admit_training()?;
    let Some(Message::Config(wire)) = next(&mut stream).await? else {
        return Err(Invalid::field("config", "must be in the first message of the stream").into());
    };
    let config = CavTrainingConfig::try_from(wire).map_err(|invalid| invalid.within("config"))?;
    let mut data = LabelledActivations::default();
    let mut count = 0_u64;
    while let Some(message) = next(&mut stream).await? {
        let Message::Example(wire) = message else {
            return Err(Invalid::field("config", "is there twice").into());
        };
        let example = LabelledActivation::try_from(wire);
        example
            .and_then(|example| data.push(example))
            .map_err(|invalid| invalid.within(&format!("example[{count}]")))?;
        count += 1;
    }
    let TrainedCavs {
        cavs,
        trained_before,
    } = registry.train_cavs(config, data).await?;
    Ok(v1::TrainCavsResponse {
        cavs: cavs.into_iter().map(CavRecord::into_wire).collect(),
        trained_before,
    })
}

async fn next(stream: &mut Streaming<v1::TrainCavsRequest>) -> Result<Option<Message>, Status> {
    match patiently(PATIENCE, stream.message()).await? {
        None => Ok(None),
        Some(v1::TrainCavsRequest { message }) => Ok(Some(required(message, "message")?)),
    }
}
