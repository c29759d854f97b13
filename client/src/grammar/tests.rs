use super::*;
use Amount::{OfMax, Raw};
use FeatureOperation::{Add, Max, Min, Scale, Set};

fn feature(sae: Option<&str>, key: FeatureKey, operation: FeatureOperation) -> FeatureEdit {
    FeatureEdit {
        feature: FeatureSelector {
            sae: sae.map(str::to_owned),
            key,
        },
        operation,
    }
}

fn label(text: &str) -> FeatureKey {
    FeatureKey::Label(text.to_owned())
}

#[test]
fn feature_edits() {
    let index = FeatureKey::Index;
    let table = [
        (
            "baseball=525",
            feature(None, label("baseball"), Set(Raw(525.0))),
        ),
        (
            "baseball:set=-1e2",
            feature(None, label("baseball"), Set(Raw(-100.0))),
        ),
        (
            "baseball=0.5max",
            feature(None, label("baseball"), Set(OfMax(0.5))),
        ),
        (
            "baseball:add=-0.5max",
            feature(None, label("baseball"), Add(OfMax(-0.5))),
        ),
        (
            "baseball:min=3",
            feature(None, label("baseball"), Min(Raw(3.0))),
        ),
        (
            "baseball:max=3",
            feature(None, label("baseball"), Max(Raw(3.0))),
        ),
        (
            "baseball:scale=0.5",
            feature(None, label("baseball"), Scale(0.5)),
        ),
        (
            "baseball:ablate",
            feature(None, label("baseball"), Set(Raw(0.0))),
        ),
        (
            "ice-hockey=1",
            feature(None, label("ice-hockey"), Set(Raw(1.0))),
        ),
        (
            "New York City=1",
            feature(None, label("New York City"), Set(Raw(1.0))),
        ),
        ("a=b=1", feature(None, label("a=b"), Set(Raw(1.0)))),
        (
            "topic: sports=1",
            feature(None, label("topic: sports"), Set(Raw(1.0))),
        ),
        (
            "topic:sports:max=1",
            feature(None, label("topic:sports"), Max(Raw(1.0))),
        ),
        (
            "ratio:max:set=1",
            feature(None, label("ratio:max"), Set(Raw(1.0))),
        ),
        ("#1234=1", feature(None, index(1234), Set(Raw(1.0)))),
        ("#1234:ablate", feature(None, index(1234), Set(Raw(0.0)))),
        (
            "#hash tag=1",
            feature(None, label("#hash tag"), Set(Raw(1.0))),
        ),
        ("c#7=1", feature(None, label("c#7"), Set(Raw(1.0)))),
        (
            "gemma/l21-65k::baseball=1",
            feature(Some("gemma/l21-65k"), label("baseball"), Set(Raw(1.0))),
        ),
        (
            "l21::#7:scale=2",
            feature(Some("l21"), index(7), Scale(2.0)),
        ),
        (
            "l21::max=1",
            feature(Some("l21"), label("max"), Set(Raw(1.0))),
        ),
        (
            "l21::max:max=1",
            feature(Some("l21"), label("max"), Max(Raw(1.0))),
        ),
        (
            "::std::vector=1",
            feature(None, label("std::vector"), Set(Raw(1.0))),
        ),
        ("a b::c=1", feature(None, label("a b::c"), Set(Raw(1.0)))),
        (
            "l21@0123aBcd::baseball=1",
            feature(Some("l21@0123aBcd"), label("baseball"), Set(Raw(1.0))),
        ),
        (
            "l21@0123abcd::#7:ablate",
            feature(Some("l21@0123abcd"), index(7), Set(Raw(0.0))),
        ),
        // Too few digits, and no digits: no version.
        (
            "l21@0123abc::a=1",
            feature(None, label("l21@0123abc::a"), Set(Raw(1.0))),
        ),
        (
            "me@home::a=1",
            feature(None, label("me@home::a"), Set(Raw(1.0))),
        ),
        (
            "@0123abcd::a=1",
            feature(None, label("@0123abcd::a"), Set(Raw(1.0))),
        ),
    ];
    for (text, expected) in table {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }
}

#[test]
fn not_feature_edits() {
    let table = [
        ("baseball", "has no value"),
        ("", "has no value"),
        ("=1", "names no feature"),
        ("sae::=1", "names no feature"),
        (":ablate", "names no feature"),
        ("sae::ablate", "has no value"),
        ("baseball=", "not a finite number"),
        ("baseball=lots", "not a finite number"),
        ("baseball=nan", "not a finite number"),
        ("baseball=inf", "not a finite number"),
        ("baseball=1e39", "not a finite number"),
        ("baseball=max", "not a finite number"),
        ("baseball:scale=0.5max", "not a finite number"),
        ("baseball:ablate=0", "takes no value"),
        ("#99999999999=1", "too large"),
    ];
    for (text, expected) in table {
        let err = text.parse::<FeatureEdit>().expect_err(text).to_string();
        assert!(err.contains(expected), "{text}: {err}");
    }
}

#[test]
fn cav_edits() {
    let clamp = |lower, upper| CavOperation::Clamp { lower, upper };
    let table = [
        (
            "rec.sport.baseball=1000",
            "rec.sport.baseball",
            CavOperation::Add(1000.0),
        ),
        ("a:add=-2", "a", CavOperation::Add(-2.0)),
        ("a=0.1norm", "a", CavOperation::AddOfNorm(0.1)),
        ("a@0123abcd=1", "a@0123abcd", CavOperation::Add(1.0)),
        ("a:ablate", "a", CavOperation::Ablate),
        ("a:clamp=-1..2.5", "a", clamp(Some(-1.0), Some(2.5))),
        ("a:clamp=..2", "a", clamp(None, Some(2.0))),
        ("a:clamp=-1..", "a", clamp(Some(-1.0), None)),
        ("x=y:z=3", "x=y:z", CavOperation::Add(3.0)),
    ];
    for (text, cav, operation) in table {
        let cav = cav.to_owned();
        assert_eq!(text.parse(), Ok(CavEdit { cav, operation }), "{text}");
    }
}

#[test]
fn not_cav_edits() {
    let table = [
        ("a", "has no value"),
        ("=1", "names no CAV"),
        ("a=", "not a finite number"),
        ("a=0.5max", "not a finite number"),
        ("a:clamp=1", "not a range"),
        ("a:clamp=..", "has no bound"),
        ("a:clamp=2..1", "above the upper"),
        ("a:ablate=1", "takes no value"),
    ];
    for (text, expected) in table {
        let err = text.parse::<CavEdit>().expect_err(text).to_string();
        assert!(err.contains(expected), "{text}: {err}");
    }
}

#[test]
fn selectors_print_as_they_parse() {
    for text in ["baseball", "#7", "l21::#7", "l21@0123abcd::ice hockey"] {
        let selector: FeatureSelector = text.parse().expect(text);
        assert_eq!(selector.to_string(), text);
    }
}

#[test]
fn edits_print_as_they_parse() {
    for text in [
        "nba:set=-0.5max",
        "l1::#7:scale=2",
        "a:max:min=3",
        "a:add=1",
        "a:max=0.1",
    ] {
        let edit: FeatureEdit = text.parse().expect(text);
        assert_eq!(edit.to_string(), text);
    }
    for text in [
        "a:add=2",
        "a:add=0.1norm",
        "a:ablate",
        "a:clamp=..2",
        "a:clamp=-1..",
    ] {
        let edit: CavEdit = text.parse().expect(text);
        assert_eq!(edit.to_string(), text);
    }
}

#[test]
fn the_sae_named_in_an_edit_wins_over_the_default() {
    let named: FeatureSelector = "l21::#7".parse().expect("selector");
    assert_eq!(named.to_ref(Some("other")).sae_id, "l21");
    let bare: FeatureSelector = "#7".parse().expect("selector");
    assert_eq!(bare.to_ref(Some("other")).sae_id, "other");
    assert_eq!(bare.to_ref(None).sae_id, "");
}
