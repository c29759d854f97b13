use super::*;
use std::sync::Arc;
use steering_proto::{
    Site,
    intervention::{FeatureOperation, Scope},
    payload::{Activation, InputNormalization, SaeFeature},
};

fn set(label: &str, value: f32, scope: Scope) -> Intervention {
    let hook = HookPoint {
        layer: 1,
        site: Site::ResidPost,
    };
    let feature = SaeFeature {
        sae_id: String::new(),
        feature_index: 20175,
        label: label.to_owned(),
        model_id: String::new(),
        hook,
        encoder: vec![1.0],
        encoder_bias: 0.0,
        decoder: vec![1.0],
        activation: Activation::Relu,
        input_normalization: InputNormalization::None,
    };
    Intervention {
        hook,
        edit: Edit::Feature {
            feature: Arc::new(feature),
            operation: FeatureOperation::Set(value),
        },
        positions: Positions {
            scope,
            ..Positions::all()
        },
        gate: None,
    }
}

fn compile(interventions: &[Intervention]) -> Result<Program, Invalid> {
    Program::compile(&ProgramSpec {
        interventions,
        ..ProgramSpec::default()
    })
}

#[test]
fn one_feature_under_two_labels_counts_once() {
    let twice = [
        set("nba", 5.0, Scope::All),
        set("basketball", 5.0, Scope::All),
    ];
    let program = compile(&twice).expect("compiles");
    assert_eq!(program.merged_into(1), Some(0));
    assert_eq!(program.entries(twice[0].hook).len(), 1);
}

#[test]
fn two_values_for_one_feature_are_an_error() {
    let twice = [
        set("nba", 5.0, Scope::All),
        set("basketball", 6.0, Scope::All),
    ];
    let err = compile(&twice).expect_err("refused");
    assert_eq!(err.violations[0].field, "interventions[1].feature");
    let apart = [
        set("nba", 5.0, Scope::Prompt),
        set("nba", 6.0, Scope::Generated),
    ];
    assert!(compile(&apart).is_ok());
}

fn token(position: u32, generated: bool) -> Token {
    Token {
        id: 5,
        position,
        generated,
        special: false,
    }
}

fn hash(program: &Program, token: Token) -> Vec<u8> {
    let mut hasher = Sha256::new();
    program.hash_token(token, &mut hasher);
    hasher.finalize().to_vec()
}

#[test]
fn a_tokens_hash_is_what_was_done_to_it() {
    let all = compile(&[set("nba", 5.0, Scope::All)]).expect("compiles");
    let prompt = compile(&[set("other label", 5.0, Scope::Prompt)]).expect("compiles");
    let generated = compile(&[set("nba", 5.0, Scope::Generated)]).expect("compiles");
    let stronger = compile(&[set("nba", 6.0, Scope::All)]).expect("compiles");
    let none = Program::default();
    let read = token(0, false);
    assert_eq!(hash(&all, read), hash(&prompt, read));
    assert_eq!(hash(&none, read), hash(&generated, read));
    assert_ne!(hash(&all, read), hash(&none, read));
    assert_ne!(hash(&all, read), hash(&stronger, read));
    let written = token(0, true);
    assert_eq!(hash(&none, written), hash(&prompt, written));
    assert_eq!(hash(&all, written), hash(&generated, written));
}

#[test]
fn the_first_edit_depends_on_the_tokens() {
    let program = compile(&[set("nba", 5.0, Scope::Generated)]).expect("compiles");
    assert_eq!(program.first_edit(&[token(0, false)]), None);
    let written = [token(0, false), token(1, true)];
    assert!(program.first_edit(&written).is_some());
}
