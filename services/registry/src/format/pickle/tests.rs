use super::{
    machine::{NODES_MAX, STACK_MAX},
    *,
};

/// Protocol-2 text of `{"cavs": tensor[2, 3], "labels": ["a", "b"]}` as
/// `torch.save` writes it.
fn cavs() -> Vec<u8> {
    let mut bytes = b"\x80\x02}q\x00(".to_vec();
    bytes.extend(text("cavs"));
    bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x02((");
    bytes.extend(text("storage"));
    bytes.extend(b"ctorch\nFloatStorage\nq\x04");
    bytes.extend(text("0"));
    bytes.extend(text("cpu"));
    bytes.extend(b"K\x06tq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0d");
    bytes.extend(text("labels"));
    bytes.extend(b"]q\x0f(");
    bytes.extend(text("a"));
    bytes.extend(text("b"));
    bytes.extend(b"eu.");
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short");
    [b"X", &len.to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn reads_the_notebooks_cavs() {
    let pickle = Pickle::parse(&cavs()).expect("pickle");
    let entries = pickle.root_entries().expect("dict");
    let [
        ("cavs", Node::Tensor(tensor)),
        ("labels", Node::List(labels)),
    ] = entries[..]
    else {
        panic!("{entries:?}");
    };
    assert_eq!(tensor.shape, [2, 3]);
    assert_eq!(tensor.strides, [3, 1]);
    assert_eq!(
        tensor.storage,
        Storage {
            dtype: StorageType::F32,
            key: "0".to_owned(),
            len: 6
        }
    );
    assert_eq!(pickle.node(labels[1]), &Node::Text("b".to_owned()));
}

#[test]
fn truncated_pickles_are_refused() {
    let bytes = cavs();
    for len in 0..bytes.len() {
        assert!(Pickle::parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn code_is_never_reached() {
    for (bytes, expected) in [
        (&b"cos\nsystem\nX\x02\0\0\0ls\x85R."[..], "os.system"),
        (
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
            "builtins.eval",
        ),
        (b"ctorch\nload\n)R.", "torch.load"),
        (b"ccollections\nOrderedDict\n)\x81.", "opcode 0x81"),
        (b"(i__main__\nC\n.", "opcode 0x69"),
        (
            b"ccollections\nOrderedDict\n(K\x01tR.",
            "no tensor rebuilder",
        ),
        (b"K\x01}b.", "state of an object"),
    ] {
        let error = Pickle::parse(bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], vec![b'.']].concat();
    assert!(Pickle::parse(&deep).is_ok());
    let marks = vec![b'('; STACK_MAX + 2];
    assert!(Pickle::parse(&marks).is_err());
    let wide = [[b'N', b'0'].repeat(NODES_MAX + 1), vec![b'.']].concat();
    assert!(Pickle::parse(&wide).is_err());
    // A storage of a long name, which would be copied with each of its tensors.
    let mut named = b"(".to_vec();
    named.extend(text("storage"));
    named.extend(b"ctorch\nFloatStorage\n");
    named.extend(text(&"0".repeat(1 << 20)));
    named.extend([&text("cpu"), &b"K\x06tQ."[..]].concat());
    let error = Pickle::parse(&named).expect_err("long").to_string();
    assert!(error.contains("no torch storage"), "{error}");
    // A list that contains itself.
    assert!(Pickle::parse(b"]q\0h\0a.").is_ok());
    for endless in [
        &b"X\xff\xff\xff\xffab"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8a\xffabc",
    ] {
        assert!(Pickle::parse(endless).is_err());
    }
}
