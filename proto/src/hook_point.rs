//! Places where activations can be read and edited, by their
//! TransformerLens names.

use std::{fmt, str::FromStr};

use crate::Invalid;

/// What is read and edited at a layer. Names follow TransformerLens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// `hook_resid_pre`: the residual stream entering the layer.
    ResidPre,
    /// `attn.hook_z`: attention output per head, concatenated, before the
    /// output projection; width `n_heads * head_dim`.
    Z,
    /// `hook_attn_out`: what attention adds to the residual stream (after
    /// Gemma's post-attention norm).
    AttnOut,
    /// `hook_mlp_out`: what the MLP adds to the residual stream (after Gemma's
    /// post-feedforward norm).
    MlpOut,
    /// `hook_resid_post`: the residual stream leaving the layer; the output of
    /// `model.model.layers[L]` in Hugging Face transformers.
    ResidPost,
}

impl Site {
    /// Every site, in the order a layer reaches them.
    pub const ALL: [Self; 5] = [
        Self::ResidPre,
        Self::Z,
        Self::AttnOut,
        Self::MlpOut,
        Self::ResidPost,
    ];

    /// The name behind `blocks.{L}.`.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::ResidPre => "hook_resid_pre",
            Self::Z => "attn.hook_z",
            Self::AttnOut => "hook_attn_out",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
        }
    }
}

/// A site at a layer, e.g. `blocks.21.hook_resid_post`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    /// Decoder layer, 0-based.
    pub layer: usize,
    /// What is read and edited there.
    pub site: Site,
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.{}", self.layer, self.site.suffix())
    }
}

impl FromStr for HookPoint {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        let unknown = || {
            let sites = Site::ALL.map(|site| format!("blocks.{{L}}.{}", site.suffix()));
            Invalid::field(
                "hook_name",
                format!(
                    "{name:?} is not a hook point; known are {}",
                    sites.join(", ")
                ),
            )
        };
        let rest = name.strip_prefix("blocks.").ok_or_else(unknown)?;
        let (layer, suffix) = rest.split_once('.').ok_or_else(unknown)?;
        let canonical = layer == "0" || !layer.starts_with(['0', '+']);
        let layer = layer
            .parse()
            .ok()
            .filter(|_| canonical)
            .ok_or_else(unknown)?;
        let site = Site::ALL
            .into_iter()
            .find(|site| site.suffix() == suffix)
            .ok_or_else(unknown)?;
        Ok(Self { layer, site })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for site in Site::ALL {
            let hook = HookPoint { layer: 21, site };
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
    }

    #[test]
    fn unknown_names_list_what_exists() {
        for name in [
            "",
            "blocks",
            "blocks.x.hook_resid_post",
            "blocks.-1.hook_resid_post",
            "blocks.+1.hook_resid_post",
            "blocks.01.hook_resid_post",
            "blocks.1.hook_resid_mid",
            "model.layers.1",
            "blocks.99999999999999999999999.hook_resid_post",
        ] {
            let err = name.parse::<HookPoint>().expect_err(name).to_string();
            assert!(err.contains("blocks.{L}.hook_resid_post"), "{err}");
        }
    }
}
