use super::*;

fn payloads() -> Payloads {
    let vector = |values: &[f32]| v1::Vector {
        name: "v".to_owned(),
        values: values.to_vec(),
    };
    Payloads::parse(vec![], vec![vector(&[3.0, 4.0]), vector(&[0.0, 0.0])]).expect("valid")
}

fn add(vector: u32, strength: f32, unit: i32) -> v1::Intervention {
    v1::Intervention {
        edit: Some(v1::intervention::Edit::VectorAdd(v1::VectorAdd {
            vector,
            hook_name: "blocks.0.hook_resid_pre".to_owned(),
            strength,
            unit,
        })),
        positions: None,
        ..Default::default()
    }
}

fn rejected(wire: v1::Intervention) -> String {
    let err = Intervention::parse(wire, &payloads()).expect_err("rejected");
    err.violations[0].field.clone()
}

#[test]
fn edits_are_checked_field_by_field() {
    let raw = v1::StrengthUnit::Raw.into();
    assert!(Intervention::parse(add(0, 1.0, raw), &payloads()).is_ok());
    assert_eq!(rejected(add(2, 1.0, raw)), "vector_add.vector");
    assert_eq!(rejected(add(0, f32::NAN, raw)), "vector_add.strength");
    assert_eq!(rejected(add(0, 1.0, 0)), "vector_add.unit");
    assert_eq!(rejected(add(0, 1.0, 99)), "vector_add.unit");
    assert_eq!(rejected(v1::Intervention::default()), "edit");
}

#[test]
fn directions_must_not_be_zero_and_bounds_must_be_ordered() {
    let clamp = |vector, lower, upper| v1::Intervention {
        edit: Some(v1::intervention::Edit::ProjectionClamp(
            v1::ProjectionClamp {
                vector,
                hook_name: "blocks.0.hook_resid_pre".to_owned(),
                lower,
                upper,
            },
        )),
        positions: None,
        ..Default::default()
    };
    assert_eq!(
        rejected(clamp(1, Some(0.0), None)),
        "projection_clamp.vector"
    );
    assert_eq!(rejected(clamp(0, None, None)), "projection_clamp.lower");
    assert_eq!(
        rejected(clamp(0, Some(2.0), Some(1.0))),
        "projection_clamp.lower"
    );
    assert!(Intervention::parse(clamp(0, None, Some(1.0)), &payloads()).is_ok());
}

#[test]
fn positions_select_tokens() {
    let token = |position, generated, special| Token {
        id: position + 100,
        position,
        generated,
        special,
    };
    let generated = Positions {
        scope: Scope::Generated,
        ..Positions::all()
    };
    assert!(!generated.contains(token(0, false, false)));
    assert!(generated.contains(token(5, true, false)));
    let window = Positions {
        start: 2,
        end: Some(4),
        ..Positions::all()
    };
    let inside: Vec<u32> = (0..6)
        .filter(|&p| window.contains(token(p, false, false)))
        .collect();
    assert_eq!(inside, [2, 3]);
    let plain = Positions {
        skip_special_tokens: true,
        token_ids: vec![101, 103],
        ..Positions::all()
    };
    assert!(plain.contains(token(1, false, false)));
    assert!(!plain.contains(token(1, false, true)));
    assert!(!plain.contains(token(2, false, false)));
}

#[test]
fn disjoint_is_only_claimed_when_certain() {
    let scope = |scope| Positions {
        scope,
        ..Positions::all()
    };
    let window = |start, end| Positions {
        start,
        end,
        ..Positions::all()
    };
    assert!(scope(Scope::Prompt).disjoint(&scope(Scope::Generated)));
    assert!(!scope(Scope::Prompt).disjoint(&scope(Scope::All)));
    assert!(window(0, Some(4)).disjoint(&window(4, None)));
    assert!(!window(0, Some(5)).disjoint(&window(4, None)));
}
