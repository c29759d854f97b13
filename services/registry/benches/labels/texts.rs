//! Made-up labels, and what clients look for.

const WORDS: u64 = 60_000;
/// Labels that others repeat.
const PHRASES: u64 = 300_000;

/// A number that looks random.
pub(super) fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The label of that number: two to seven words. Every third repeats one of the phrases.
pub(super) fn label(number: u64) -> String {
    let mut random = mixed(number);
    if random.is_multiple_of(3) {
        random = mixed(random % PHRASES);
    }
    let words = 2 + (random >> 8) % 6;
    let words: Vec<String> = (0..words).map(|i| word(mixed(random ^ i))).collect();
    words.join(" ")
}

/// A word; the n-th most frequent comes about 1/n as often as the first (Zipf's law).
fn word(random: u64) -> String {
    let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
    let rank = (WORDS as f64).powf(part) as u64;
    let mut rest = mixed(rank);
    let mut word = String::new();
    for _ in 0..2 + rest % 3 {
        rest = mixed(rest);
        word.push(char::from(b"bcdfghklmnprstvwz"[(rest % 17) as usize]));
        word.push(char::from(b"aeiou"[(rest / 17 % 5) as usize]));
        if rest.is_multiple_of(3) {
            word.push(char::from(b"nrstl"[(rest / 85 % 5) as usize]));
        }
    }
    word
}

/// Kinds of queries.
pub(super) const KINDS: [&str; 7] = [
    "a word",
    "two words",
    "four letters",
    "a whole label",
    "a word's end",
    "a typing error",
    "no word",
];

/// A query of a kind: of words of labels, as frequent as they are there.
pub(super) fn query(kind: usize, random: u64) -> String {
    let text = label(random >> 8);
    let words: Vec<&str> = text.split(' ').collect();
    let (first, last) = (words[0], words[words.len() - 1]);
    match kind {
        0 => last.to_owned(),
        1 => format!("{last} {first}"),
        2 => last[..last.len().min(4)].to_owned(),
        3 => text,
        4 => last[1..].to_owned(),
        5 => format!("{}x{}", &last[..2], &last[3..]),
        _ => format!("qq{last}"),
    }
}
