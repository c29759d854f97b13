//! Validated messages of `ComputeFeatureStatistics`.

use crate::{
    Invalid,
    invalid::{finite_vector, short},
    v1,
};

const TEXT_LEN_MAX: usize = 500;
const DIGEST_LEN_MAX: usize = 64;
/// Most tokens of one text.
const TOKENS_MAX: usize = 1 << 20;

/// Statistics of what, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatisticsConfig {
    /// The SAE; empty = the only one.
    pub sae_id: String,
    /// What the client knows of the texts.
    pub source: CorpusSource,
    /// Count special tokens too.
    pub include_special_tokens: bool,
}

/// What a client knows of texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CorpusSource {
    /// The file's name.
    pub origin: String,
    /// SHA-256 (hex) of the texts.
    pub data_digest: String,
    /// Model that read them.
    pub model_id: String,
    /// Its digest.
    pub model_digest: String,
    /// Texts were cut to this many tokens; 0 = the whole context.
    pub max_tokens: u32,
}

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextToken {
    /// What it reads as.
    pub text: String,
    /// Whether it is a special token.
    pub special: bool,
}

impl TryFrom<v1::FeatureStatisticsConfig> for StatisticsConfig {
    type Error = Invalid;

    fn try_from(wire: v1::FeatureStatisticsConfig) -> Result<Self, Invalid> {
        let v1::FeatureStatisticsConfig {
            sae_id,
            source,
            include_special_tokens,
        } = wire;
        let source = source.map(CorpusSource::try_from).transpose();
        Ok(Self {
            sae_id,
            source: source
                .map_err(|invalid| invalid.within("source"))?
                .unwrap_or_default(),
            include_special_tokens,
        })
    }
}

impl TryFrom<v1::CorpusSource> for CorpusSource {
    type Error = Invalid;

    fn try_from(wire: v1::CorpusSource) -> Result<Self, Invalid> {
        let v1::CorpusSource {
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
        } = wire;
        short(&origin, "origin", TEXT_LEN_MAX)?;
        short(&data_digest, "data_digest", DIGEST_LEN_MAX)?;
        short(&model_id, "model_id", TEXT_LEN_MAX)?;
        short(&model_digest, "model_digest", DIGEST_LEN_MAX)?;
        Ok(Self {
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
        })
    }
}

impl CorpusSource {
    /// The wire's message.
    pub fn into_wire(self) -> v1::CorpusSource {
        let Self {
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
        } = self;
        v1::CorpusSource {
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
        }
    }
}

/// The tokens of a text.
pub fn tokens(wire: v1::TextTokens) -> Result<Vec<TextToken>, Invalid> {
    let v1::TextTokens { tokens } = wire;
    if !(1..=TOKENS_MAX).contains(&tokens.len()) {
        let text = format!(
            "has {} entries; 1 to {TOKENS_MAX} are allowed",
            tokens.len()
        );
        return Err(Invalid::field("tokens", text));
    }
    let token = |v1::TextToken { text, special }| TextToken { text, special };
    Ok(tokens.into_iter().map(token).collect())
}

/// Activations, row after row, of this width.
pub fn rows(wire: v1::ActivationRows, width: usize) -> Result<Vec<f32>, Invalid> {
    let v1::ActivationRows { values } = wire;
    let values = finite_vector(values, "values")?;
    if values.len() % width != 0 {
        let text = format!("has {} numbers; rows of {width} are needed", values.len());
        return Err(Invalid::field("values", text));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_messages_are_refused_by_field() {
        let config = v1::FeatureStatisticsConfig {
            source: Some(v1::CorpusSource {
                model_digest: "0".repeat(65),
                ..v1::CorpusSource::default()
            }),
            ..v1::FeatureStatisticsConfig::default()
        };
        let error = StatisticsConfig::try_from(config).expect_err("a long digest");
        assert_eq!(error.violations[0].field, "source.model_digest");
        let none = v1::TextTokens { tokens: Vec::new() };
        let error = tokens(none).expect_err("no tokens");
        assert_eq!(error.violations[0].field, "tokens");
        for (values, field) in [
            (vec![], "values"),
            (vec![1.0; 5], "values"),
            (vec![1.0, f32::INFINITY], "values[1]"),
        ] {
            let error = rows(v1::ActivationRows { values }, 2).expect_err(field);
            assert_eq!(error.violations[0].field, field);
        }
        let values = vec![1.0; 4];
        assert_eq!(
            rows(v1::ActivationRows { values }, 2).map(|v| v.len()),
            Ok(4)
        );
    }
}
