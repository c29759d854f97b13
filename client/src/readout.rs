//! What is read from the activations: probes and conditions by name → messages
//! that refer to the payload tables of a request.

use futures::future::try_join_all;

use crate::{
    Amount, Client, Comparison, Condition, Error, Gate, GateMode, GenerationBuilder, Readout,
    Service,
    compose::{activation, directions},
    v1,
};

/// Where names are looked up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lookup<'a> {
    /// SAE of features that name none; none = the registry's only one.
    pub default_sae: Option<&'a str>,
    /// Hook point for CAVs instead of their own, as in [`crate::Steering::cav_hook`].
    pub cav_hook: Option<&'a str>,
}

/// A readout with its payload.
enum Payload {
    Feature(v1::SaeFeature),
    Direction(String, v1::Vector),
}

impl Client {
    /// Fetches what the readouts need and puts it into the builder's tables.
    ///
    /// # Errors
    /// If the registry does not know a name, or a CAV has several directions and
    /// no hook point says which one is meant.
    pub async fn resolve_readouts(
        &self,
        readouts: &[Readout],
        lookup: Lookup<'_>,
        builder: &mut GenerationBuilder,
    ) -> Result<Vec<v1::Readout>, Error> {
        let payloads = readouts.iter().map(|readout| self.payload(readout, lookup));
        let payloads = try_join_all(payloads).await?;
        Ok(payloads.into_iter().map(|p| p.read(builder)).collect())
    }

    /// The same for conditions.
    ///
    /// # Errors
    /// As [`Self::resolve_readouts`], or if a threshold cannot be resolved.
    pub async fn resolve_conditions(
        &self,
        conditions: &[Condition],
        lookup: Lookup<'_>,
        builder: &mut GenerationBuilder,
    ) -> Result<Vec<v1::Condition>, Error> {
        use v1::condition::Comparison as Resolved;
        let payloads = conditions.iter().map(|c| self.payload(&c.readout, lookup));
        let payloads = try_join_all(payloads).await?;
        let condition = |(condition, payload): (&Condition, Payload)| {
            let comparison = match condition.comparison {
                Comparison::Above(amount) => Resolved::Above(payload.threshold(amount)?),
                Comparison::Below(amount) => Resolved::Below(payload.threshold(amount)?),
            };
            Ok(v1::Condition {
                readout: Some(payload.read(builder)),
                comparison: Some(comparison),
            })
        };
        conditions.iter().zip(payloads).map(condition).collect()
    }

    /// The direction behind a readout, with its hook point: a feature's decoder row
    /// (what setting it writes), or a CAV's vector.
    ///
    /// # Errors
    /// As [`Self::resolve_readouts`].
    pub async fn direction(
        &self,
        readout: &Readout,
        lookup: Lookup<'_>,
    ) -> Result<(String, v1::Vector), Error> {
        Ok(match self.payload(readout, lookup).await? {
            Payload::Direction(hook_name, vector) => (hook_name, vector),
            Payload::Feature(feature) => {
                let vector = v1::Vector {
                    name: readout.to_string(),
                    values: feature.decoder,
                };
                (feature.hook_name, vector)
            }
        })
    }

    pub(crate) async fn resolve_gate(
        &self,
        gate: &Gate,
        lookup: Lookup<'_>,
        builder: &mut GenerationBuilder,
    ) -> Result<v1::Gate, Error> {
        let condition = std::slice::from_ref(&gate.condition);
        let conditions = self.resolve_conditions(condition, lookup, builder).await?;
        let (mode, tokens) = match gate.mode {
            GateMode::While => (v1::GateMode::While, 0),
            GateMode::Once => (v1::GateMode::Once, 0),
            GateMode::For(tokens) => (v1::GateMode::ForTokens, tokens),
        };
        Ok(v1::Gate {
            condition: conditions.into_iter().next(),
            mode: mode.into(),
            tokens,
        })
    }

    async fn payload(&self, readout: &Readout, lookup: Lookup<'_>) -> Result<Payload, Error> {
        match readout {
            Readout::Feature(selector) => {
                let reference = selector.to_ref(lookup.default_sae);
                let feature = self.get_features(vec![reference]).await?.pop();
                feature.map(Payload::Feature).ok_or_else(|| {
                    Error::contract(Service::Registry, "GetFeatures answered no feature")
                })
            }
            Readout::Cav(name) => {
                let mut chosen = directions(self.get_cav(name).await?, lookup.cav_hook)?;
                match (chosen.pop(), chosen.is_empty()) {
                    (Some((hook, vector)), true) => Ok(Payload::Direction(hook, vector)),
                    (last, _) => Err(Error::SeveralDirections {
                        cav: name.clone(),
                        available: chosen
                            .into_iter()
                            .chain(last)
                            .map(|(hook, _)| hook)
                            .collect(),
                    }),
                }
            }
        }
    }
}

impl Payload {
    fn threshold(&self, amount: Amount) -> Result<f32, Error> {
        match (self, amount) {
            (Self::Feature(feature), amount) => activation(amount, feature),
            (Self::Direction(..), Amount::Raw(value)) => Ok(value),
            (Self::Direction(_, vector), Amount::OfMax(_)) => Err(Error::NoMaxActivation {
                feature: format!("CAV {:?}", vector.name),
            }),
        }
    }

    /// Moves the payload into the builder's tables.
    fn read(self, builder: &mut GenerationBuilder) -> v1::Readout {
        use v1::readout::Source;
        let source = match self {
            Self::Feature(feature) => Source::Feature(builder.feature(feature)),
            Self::Direction(hook_name, vector) => Source::Direction(v1::DirectionReadout {
                vector: builder.vector(vector),
                hook_name,
                bias: 0.0,
            }),
        };
        v1::Readout {
            source: Some(source),
        }
    }
}
