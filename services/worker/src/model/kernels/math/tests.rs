use super::*;

fn check(ours: f32, exact: f64, x: f32) {
    let error = (f64::from(ours) - exact).abs() / exact.abs().max(1e-37);
    assert!(error <= 2e-7, "{x}: {ours} for {exact}, off by {error}");
}

#[test]
fn exp_and_tanh_are_exact_to_about_an_ulp() {
    for i in -870_000..880_000 {
        let x = i as f32 * 1e-4;
        check(exp::<true>(x), f64::from(x).exp(), x);
        check(exp::<false>(x), f64::from(x).exp(), x);
        let x = x * 0.2;
        check(tanh::<true>(x), f64::from(x).tanh(), x);
        check(tanh::<false>(x), f64::from(x).tanh(), x);
    }
}

#[test]
fn the_ends_are_where_they_belong() {
    for x in [-88.0, -1e30, f32::NEG_INFINITY] {
        assert_eq!(exp::<true>(x), 0.0);
    }
    for x in [89.0, 1e30, f32::INFINITY] {
        assert_eq!(exp::<true>(x), f32::INFINITY);
        assert_eq!(tanh::<true>(x), 1.0);
        assert_eq!(tanh::<true>(-x), -1.0);
    }
    assert_eq!(exp::<true>(0.0), 1.0);
    assert_eq!(tanh::<true>(0.0), 0.0);
    assert!(exp::<true>(f32::NAN).is_nan() && tanh::<true>(f32::NAN).is_nan());
}
