use super::*;

fn context() -> CavContext {
    CavContext {
        hook: "blocks.1.hook_resid_post".parse().ok(),
        model_id: "m".to_owned(),
        origin: String::new(),
    }
}

#[test]
fn the_digest_is_of_numbers_and_hook_points() {
    let hook = |layer| HookPoint {
        layer,
        site: steering_proto::Site::ResidPost,
    };
    let make = |name: &str, layer, value| {
        record(
            name.to_owned(),
            vec![(hook(layer), vec![3.0, value])],
            &context(),
        )
        .expect("record")
    };
    assert_eq!(make("a", 1, 4.0).digest, make("b", 1, 4.0).digest);
    assert_ne!(make("a", 1, 4.0).digest, make("a", 2, 4.0).digest);
    assert_ne!(make("a", 1, 4.0).digest, make("a", 1, 5.0).digest);
    assert_eq!(make("a", 1, 4.0).directions[0].norm, 5.0);
}

#[test]
fn bad_cavs_are_refused_by_field() {
    let hook = HookPoint {
        layer: 1,
        site: steering_proto::Site::ResidPost,
    };
    for (name, directions, field) in [
        ("", vec![(hook, vec![1.0])], "name"),
        ("a@0123abcd", vec![(hook, vec![1.0])], "name"),
        ("a", vec![], "directions"),
        ("a", vec![(hook, vec![])], "directions[0].vector.values"),
        ("a", vec![(hook, vec![0.0, 0.0])], "directions[0].vector"),
        ("a", vec![(hook, vec![f32::MAX; 2])], "directions[0].vector"),
        (
            "a",
            vec![(hook, vec![1.0, f32::NAN])],
            "directions[0].vector.values[1]",
        ),
        (
            "a",
            vec![(hook, vec![1.0]), (hook, vec![1.0])],
            "directions[1].hook_name",
        ),
    ] {
        let error = record(name.to_owned(), directions, &context()).expect_err(field);
        assert_eq!(error.violations[0].field, field);
    }
}

#[test]
fn addresses() {
    let parse = |text| parse_address(text).expect("address");
    assert_eq!(parse("a").digest_prefix, None);
    assert_eq!(parse("me@home").name, "me@home");
    assert_eq!(
        parse("a@0123ABCD").digest_prefix.as_deref(),
        Some("0123abcd")
    );
    assert_eq!(parse("a@b@0123abcd").name, "a@b");
}

#[test]
fn files_are_named_and_placed() {
    let file = |name: Option<&str>| CavFile {
        cavs: vec![CavEntry {
            name: name.map(str::to_owned),
            directions: vec![(None, vec![1.0])],
        }],
        model_id: None,
    };
    let made = records(file(None), &context(), "dir/happy.gguf").expect("records");
    assert_eq!(made[0].name, "happy");
    assert_eq!(made[0].directions[0].hook_name, "blocks.1.hook_resid_post");
    let nowhere = CavContext {
        hook: None,
        ..context()
    };
    assert_eq!(
        records(file(Some("a")), &nowhere, "")
            .expect_err("hook")
            .violations[0]
            .field,
        "header.hook_name"
    );
    let nobody = CavContext {
        model_id: String::new(),
        ..context()
    };
    assert_eq!(
        records(file(Some("a")), &nobody, "")
            .expect_err("model")
            .violations[0]
            .field,
        "header.model_id"
    );
}
