//! What a request says about an import, checked, and reconciled with the files.

use steering_proto::{HookPoint, Invalid, v1};

use super::{HookHint, SaeSource};
use crate::{error::Result, store::milliseconds};

const SAE_ID_LEN_MAX: usize = 200;
const MODEL_ID_LEN_MAX: usize = 500;
const TEXT_LEN_MAX: usize = 500;

/// Checked [`v1::SaeImportOptions`].
#[derive(Debug, Clone, PartialEq)]
pub struct ImportOptions {
    /// Name to give the SAE.
    pub sae_id: String,
    /// Hook point, if the request gives one.
    pub hook: Option<HookPoint>,
    /// Model, if the request gives one.
    pub model_id: Option<String>,
    /// Factor by which activations are to be scaled for the SAE.
    pub activation_scale: Option<f32>,
    /// What an export says of the SAE.
    pub provenance: Option<Provenance>,
    /// Whether the name may be another content's.
    pub new_version: bool,
}

/// Checked [`v1::SaeProvenance`].
#[derive(Debug, Clone, PartialEq)]
pub struct Provenance {
    /// Digest that the import must make.
    pub digest: String,
    /// Format it came in first.
    pub format: String,
    /// Where it came from first.
    pub origin: String,
    /// When, in milliseconds since 1970, if that is said.
    pub created_at_ms: Option<i64>,
}

impl TryFrom<v1::SaeProvenance> for Provenance {
    type Error = Invalid;

    fn try_from(wire: v1::SaeProvenance) -> Result<Self, Invalid> {
        let v1::SaeProvenance {
            digest,
            format,
            origin,
            created_at,
        } = wire;
        check_text(&format, "format", TEXT_LEN_MAX)?;
        check_text(&origin, "origin", TEXT_LEN_MAX)?;
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let text = format!("is {digest:?}; 64 hex digits are needed");
            return Err(Invalid::field("digest", text));
        }
        Ok(Self {
            digest,
            format,
            origin,
            created_at_ms: created_at.map(|time| milliseconds(&time)),
        })
    }
}

impl Provenance {
    /// Refuses directions with another digest.
    pub fn check(&self, digest: &str) -> Result<(), Invalid> {
        if self.digest == digest {
            return Ok(());
        }
        let text = format!(
            "is {}, but the files make {digest}: they were changed",
            self.digest
        );
        Err(Invalid::field("options.provenance.digest", text))
    }
}

/// Hook point, model and scale, decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Hook point.
    pub hook: HookPoint,
    /// Model.
    pub model_id: String,
    /// Factor to fold into the weights; 1 for most.
    pub scale: f32,
}

impl TryFrom<v1::SaeImportOptions> for ImportOptions {
    type Error = Invalid;

    fn try_from(wire: v1::SaeImportOptions) -> Result<Self, Invalid> {
        let v1::SaeImportOptions {
            sae_id,
            hook_name,
            model_id,
            activation_scale,
            provenance,
            new_version,
        } = wire;
        check_sae_id(&sae_id)?;
        check_text(&model_id, "model_id", MODEL_ID_LEN_MAX)?;
        if let Some(scale) = activation_scale.filter(|scale| !(scale.is_finite() && *scale > 0.0)) {
            return Err(Invalid::field(
                "activation_scale",
                format!("is {scale}; must be positive and finite"),
            ));
        }
        Ok(Self {
            sae_id,
            hook: if hook_name.is_empty() {
                None
            } else {
                Some(hook_name.parse()?)
            },
            model_id: Some(model_id).filter(|model_id| !model_id.is_empty()),
            activation_scale,
            provenance: provenance
                .map(Provenance::try_from)
                .transpose()
                .map_err(|invalid| invalid.within("provenance"))?,
            new_version,
        })
    }
}

impl ImportOptions {
    /// Decides what request and files say together. A file's own statement
    /// and the request must agree; the request wins over a mere suggestion.
    pub fn resolve(&self, source: &SaeSource) -> Result<Resolved, Invalid> {
        Ok(Resolved {
            hook: self.resolve_hook(source.hook.as_ref())?,
            model_id: self
                .model_id
                .clone()
                .or_else(|| source.model_id.clone())
                .ok_or_else(|| {
                    Invalid::field(
                        "options.model_id",
                        "is required: the files do not name the model",
                    )
                })?,
            scale: self.resolve_scale(source)?,
        })
    }

    fn resolve_hook(&self, hint: Option<&HookHint>) -> Result<HookPoint, Invalid> {
        let field = "options.hook_name";
        match (self.hook, hint) {
            (Some(hook), None | Some(HookHint::Implied(_))) => Ok(hook),
            (Some(hook), Some(HookHint::Stated(stated))) if hook != *stated => Err(Invalid::field(
                field,
                format!("is {hook}, but the files say {stated}; they must agree"),
            )),
            (_, Some(HookHint::Stated(hook))) | (None, Some(HookHint::Implied(hook))) => Ok(*hook),
            (_, Some(HookHint::Unknown(name))) => {
                let known = name.parse::<HookPoint>().err();
                let why = known.map_or_else(String::new, |error| error.to_string());
                Err(Invalid::field(
                    field,
                    format!("the files say {name:?}, which cannot be served: {why}"),
                ))
            }
            (None, None) => Err(Invalid::field(
                field,
                "is required: the files do not say where the SAE reads and writes (e.g. blocks.21.hook_resid_post)",
            )),
        }
    }

    fn resolve_scale(&self, source: &SaeSource) -> Result<f32, Invalid> {
        let field = "options.activation_scale";
        match (self.activation_scale, source.expects_average_norm) {
            (None, false) => Ok(1.0),
            (Some(_), true) if source.rescales_by_decoder_norm => Err(Invalid::field(
                field,
                "cannot be folded together with rescale_acts_by_decoder_norm: it would change what an \
                 activation means; fold it with SAELens first",
            )),
            (Some(scale), true) => Ok(scale),
            (None, true) => Err(Invalid::field(
                field,
                "is required: the SAE was trained on activations scaled to an expected average norm \
                 (expected_average_only_in), and the scale is not in the files",
            )),
            (Some(_), false) => Err(Invalid::field(
                field,
                "is given, but the files do not say that the SAE expects scaled activations",
            )),
        }
    }
}

fn check_sae_id(sae_id: &str) -> Result<(), Invalid> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let description = if sae_id.is_empty() {
        "is required"
    } else if sae_id.len() > SAE_ID_LEN_MAX {
        "is too long; at most 200 characters"
    } else if !sae_id.chars().all(allowed) {
        "has other characters than letters, digits, \".\", \"_\", \"-\" and \"/\""
    } else {
        return Ok(());
    };
    Err(Invalid::field("sae_id", description))
}

/// Requires a text without control characters, at most `len_max` bytes long.
pub fn check_text(text: &str, field: &str, len_max: usize) -> Result<(), Invalid> {
    if text.len() > len_max {
        return Err(Invalid::field(
            field,
            format!("has {} bytes; at most {len_max}", text.len()),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Invalid::field(field, "has control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::SaeImportOptions {
        v1::SaeImportOptions {
            sae_id: "gemma/l21-65k_v1.0".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn options_are_checked_field_by_field() {
        assert!(ImportOptions::try_from(wire()).is_ok());
        type Spoil = fn(&mut v1::SaeImportOptions);
        let cases: [(&str, Spoil); 8] = [
            ("sae_id", |w| w.sae_id.clear()),
            ("sae_id", |w| w.sae_id = "a b".to_owned()),
            ("sae_id", |w| w.sae_id = "ä".to_owned()),
            ("sae_id", |w| w.sae_id = "a".repeat(201)),
            ("hook_name", |w| w.hook_name = "layer 21".to_owned()),
            ("model_id", |w| w.model_id = "a\nb".to_owned()),
            ("activation_scale", |w| w.activation_scale = Some(0.0)),
            ("activation_scale", |w| w.activation_scale = Some(f32::NAN)),
        ];
        for (field, spoil) in cases {
            let mut options = wire();
            spoil(&mut options);
            let error = ImportOptions::try_from(options).expect_err(field);
            assert_eq!(error.violations[0].field, field);
        }
    }

    #[test]
    fn stated_hooks_must_agree_and_suggested_ones_give_way() {
        let hook = |layer| HookPoint {
            layer,
            site: steering_proto::Site::ResidPost,
        };
        let mut options = ImportOptions::try_from(wire()).expect("options");
        assert!(options.resolve_hook(None).is_err());
        assert_eq!(
            options.resolve_hook(Some(&HookHint::Implied(hook(3)))),
            Ok(hook(3))
        );
        assert_eq!(
            options.resolve_hook(Some(&HookHint::Stated(hook(3)))),
            Ok(hook(3))
        );
        options.hook = Some(hook(4));
        assert_eq!(
            options.resolve_hook(Some(&HookHint::Implied(hook(3)))),
            Ok(hook(4))
        );
        assert!(
            options
                .resolve_hook(Some(&HookHint::Stated(hook(3))))
                .is_err()
        );
        let unknown = HookHint::Unknown("blocks.1.hook_mlp_in".to_owned());
        let error = options
            .resolve_hook(Some(&unknown))
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("hook_mlp_in") && error.contains("hook_resid_post"),
            "{error}"
        );
    }
}
