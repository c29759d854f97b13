//! Snapshots, and what the cache holds.

use super::*;

const LONG: usize = 100;

fn windowed(model: &Model) -> bool {
    let mut layers = model.config().layers.iter();
    layers.any(|layer| layer.window.is_some())
}

#[test]
fn a_restored_prefix_goes_on_bit_for_bit() {
    for_every_family(|family, model| {
        let prompt = tokens(model, 40, 0);
        let whole = read(model, &mut model.new_cache(1), 0, 0, &prompt, 40);
        let mut cache = model.new_cache(3);
        read(model, &mut cache, 0, 0, &prompt[..30], 30);
        let goes_on = |cache: &mut KvCache, slot, from: usize| {
            assert_eq!(cache.len(slot), from);
            let rest = read(model, cache, slot, from, &prompt[from..], 3);
            same(&rest, &whole[from..].to_vec(), family);
            cache.clear(slot);
        };
        let snapshot = cache.snapshot(0, 30).expect("snapshot");
        assert_eq!(snapshot.len(), 30);
        for len in [30, 29, 13, 5, 1, 0] {
            assert!(snapshot.covers(len), "nothing was dropped");
            cache.restore(1, &snapshot, len).expect("restores");
            goes_on(&mut cache, 1, len);
        }
        let shorter = cache.snapshot(0, 13).expect("snapshot");
        assert!(shorter.bytes() < snapshot.bytes());
        assert!(shorter.covers(13) && !shorter.covers(14));
        cache.restore(1, &shorter, 13).expect("restores");
        goes_on(&mut cache, 1, 13);
        assert!(cache.snapshot(0, 31).is_err());

        let taken = cache.take(0);
        assert_eq!((cache.len(0), cache.bytes(0), taken.len()), (0, 0, 30));
        cache.restore(0, &taken, 30).expect("restores");
        assert!(cache.restore(0, &taken, 30).is_err(), "not empty");
        // What goes on in one slot touches neither the snapshot nor another slot.
        cache.restore(2, &taken, 30).expect("restores");
        read(model, &mut cache, 2, 30, &tokens(model, 10, 9), 1);
        goes_on(&mut cache, 0, 30);
        cache.restore(0, &taken, 20).expect("restores");
        goes_on(&mut cache, 0, 20);
    });
}

#[test]
fn what_a_window_has_left_behind_is_not_covered() {
    for_every_family(|family, model| {
        let prompt = tokens(model, LONG + 20, 0);
        let n = prompt.len();
        let whole = read(model, &mut model.new_cache(1), 0, 0, &prompt, n);
        for size in [1, 7, LONG] {
            let mut cache = model.new_cache(2);
            read(model, &mut cache, 0, 0, &prompt[..LONG], size);
            let early = cache.snapshot(0, 10).expect("snapshot");
            let snapshot = cache.take(0);
            assert!(
                snapshot.covers(LONG) && !snapshot.covers(LONG + 1),
                "{family}"
            );
            assert_eq!(snapshot.covers(10), !windowed(model), "{family}");
            assert_eq!(early.covers(10), !windowed(model), "{family}");
            assert_eq!(cache.restore(1, &snapshot, 10).is_err(), windowed(model));
            cache.clear(1);
            cache.restore(1, &snapshot, LONG).expect("restores");
            let rest = read(model, &mut cache, 1, LONG, &prompt[LONG..], 1);
            same(&rest, &whole[LONG..].to_vec(), family);
        }
    });
}

#[test]
fn memory_stays_within_its_bound() {
    for_every_family(|family, model| {
        let prompt = tokens(model, 200, 0);
        for size in [1, 9, 150] {
            let mut cache = model.new_cache(1);
            let mut most = 0;
            for (i, part) in prompt.chunks(size).enumerate() {
                read(model, &mut cache, 0, i * size, part, size);
                let (bytes, bound) = (cache.bytes(0), model.kv_bytes(cache.len(0)));
                assert!(bytes <= bound, "{family} by {size}: {bytes} of {bound}");
                most = most.max(bytes);
            }
            assert!(most <= model.kv_bytes(prompt.len()));
            cache.clear(0);
            assert_eq!(cache.bytes(0), 0);
        }
        let config = model.config();
        let full = config.layers.iter().filter(|l| l.window.is_none()).count();
        let windowed = config.layers.len() - full;
        let row = 2 * config.kv_width() * 4;
        // 200 rows and a quarter, rounded up; windows of 7 and 8 fit the least buffer.
        assert_eq!(model.kv_bytes(200), row * (full * 256 + windowed * 64));
    });
}
