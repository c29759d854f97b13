use super::*;

fn render(source: &str, messages: &[(&str, &str)]) -> Result<String, TextError> {
    let special = vec![("bos_token".to_owned(), "<s>".to_owned())];
    let messages: Vec<Message> = messages
        .iter()
        .map(|(role, content)| Message {
            role: (*role).to_owned(),
            content: (*content).to_owned(),
        })
        .collect();
    ChatTemplate::compile(source, special)?.render(&messages, true)
}

#[test]
fn blocks_leave_no_white_space() {
    let source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m['role'] + ': ' + m.content | trim }}\n  {% endfor %}\nend\n";
    let text = render(source, &[("user", " a "), ("x", "b")]).expect("renders");
    assert_eq!(text, "<s>\nuser: a\nx: b\nend");
}

#[test]
fn python_methods_slices_and_namespaces_work() {
    let source = "{% set ns = namespace(last='') %}{% for m in messages[::-1] %}{% if m.content.startswith('a') %}{% set ns.last = m.content.split('|')[-1].strip() %}{% break %}{% endif %}{% endfor %}{{ ns.last }}{{ none }}{{ true }}";
    let text = render(source, &[("user", "a| one "), ("user", "b")]).expect("renders");
    assert_eq!(text, "oneNoneTrue");
}

#[test]
fn tojson_is_json_dumps() {
    let text = render("{{ messages | tojson }}", &[("user", "<é> \"q\" '\n")]).expect("renders");
    assert_eq!(text, r#"[{"role": "user", "content": "<é> \"q\" '\n"}]"#);
    let text = render("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}", &[]).expect("renders");
    assert_eq!(text, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
}

#[test]
fn raised_exceptions_keep_their_message() {
    let source = "{% macro check(m) %}{{ raise_exception('Roles must alternate: ' + m.role) }}{% endmacro %}{{ check(messages[0]) }}";
    match render(source, &[("system", "x")]) {
        Err(TextError::TemplateRaised(message)) => {
            assert_eq!(message, "Roles must alternate: system");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn generation_tags_print_their_body() {
    let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endfor %}|{% generation %}x{% endgeneration %}";
    assert_eq!(render(source, &[("user", "a")]).expect("renders"), "a|x");
}

#[test]
fn tools_and_documents_are_none() {
    let source =
        "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ date is defined }}";
    assert_eq!(render(source, &[]).expect("renders"), "TrueTrueTrueFalse");
}

#[test]
fn hostile_templates_run_out_of_budget() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(30) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | tojson }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 99999999999 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ messages[0].content.replace('', 'y' * 100000) * 1000 }}",
    ] {
        let started = std::time::Instant::now();
        let result = render(source, &[("user", &"x".repeat(10_000))]);
        assert!(result.is_err(), "{source}");
        assert!(started.elapsed().as_secs() < 10, "{source}");
    }
}

#[test]
fn files_and_other_templates_are_out_of_reach() {
    assert!(render("{% include '/etc/hostname' %}", &[]).is_err());
    assert!(render("{% for", &[]).is_err());
}
