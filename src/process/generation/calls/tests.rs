//! Answers as models of each form write them, whole and in pieces.

use proptest::prelude::*;

use super::*;

const FORMS: [CallForm; 3] = [CallForm::Hermes, CallForm::Mistral, CallForm::Llama];

fn reader(form: CallForm) -> CallReader {
    let tools = ["weather", "noop"].map(str::to_owned).into();
    CallReader::new(CallRules { form, tools, only_first: false })
}

/// What all pieces of a text come to.
fn all<'a>(mut reader: CallReader, pieces: impl IntoIterator<Item = &'a str>) -> Read {
    let mut read = Read::default();
    let mut add = |more: Read| {
        read.text.push_str(&more.text);
        read.calls.extend(more.calls);
    };
    pieces.into_iter().for_each(|piece| add(reader.push(piece)));
    add(reader.finish());
    read
}

/// Content and calls, these as `name(arguments)`.
fn told(form: CallForm, text: &str) -> (String, Vec<String>) {
    let Read { text, calls } = all(reader(form), [text]);
    (text, calls.into_iter().map(|Call { name, arguments }| format!("{name}({arguments})")).collect())
}

#[track_caller]
fn calls(form: CallForm, text: &str, content: &str, want: &[&str]) {
    let (got, calls) = told(form, text);
    assert_eq!(
        (got.as_str(), calls.iter().map(String::as_str).collect::<Vec<_>>()),
        (content, want.to_vec()),
        "{text}"
    );
}

#[track_caller]
fn content(form: CallForm, text: &str) {
    calls(form, text, text, &[]);
}

#[test]
fn hermes_calls_are_read_one_after_the_other() {
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"town\": \"Köln\", \"days\": 2}}\n</tool_call>";
    let want = r#"weather({"town":"Köln","days":2})"#;
    let form = CallForm::Hermes;
    calls(form, call, "", &[want]);
    calls(form, &format!("\n\n{call}\n{call}\n"), "", &[want, want]);
    calls(form, &format!("Let me see.\n{call}"), "Let me see.", &[want]);
    calls(form, &format!("a{call}\nb\n"), "a\nb\n", &[want]);
    calls(form, &format!("<think>\nhm\n</think>\n\n{call}"), "<think>\nhm\n</think>", &[want]);
    // The other way round, without arguments, or with those as text.
    calls(form, r#"<tool_call>{"arguments": {}, "name": "noop"}</tool_call>"#, "", &["noop({})"]);
    calls(form, r#"<tool_call>{"name": "noop"}</tool_call>"#, "", &["noop({})"]);
    calls(form, r#"<tool_call>{"name": "noop", "arguments": null}</tool_call>"#, "", &["noop({})"]);
    calls(form, r#"<tool_call>{"name": "f", "arguments": "{\"a\": [1, 2]}"}</tool_call>"#, "", &[r#"f({"a":[1,2]})"#]);
    // A mark in a string is a part of it.
    let quoted = r#"<tool_call>{"name": "f", "arguments": {"a": "</tool_call> \" } <tool_call>"}}</tool_call>"#;
    calls(form, quoted, "", &[r#"f({"a":"</tool_call> \" } <tool_call>"})"#]);
    // What closes a call may be forgotten.
    calls(form, &call.replace("</tool_call>", ""), "", &[want]);
    calls(form, &format!("{}{call}", call.replace("</tool_call>", "")), "", &[want, want]);
}

#[test]
fn arguments_are_what_was_written_but_for_white_space() {
    let written = r#"{ "a" : 1e5, "b": 123456789012345678901234567890, "b": 1.0, "c\u00e9": " \\\" x ", "d": [ ] }"#;
    let compact = r#"f({"a":1e5,"b":123456789012345678901234567890,"b":1.0,"c\u00e9":" \\\" x ","d":[]})"#;
    let text =
        format!("<tool_call>{{ \"name\" : \"f\", \"arguments\" : {written}, \"id\": \"arguments\" }}</tool_call>");
    calls(CallForm::Hermes, &text, "", &[compact]);
}

#[test]
fn what_is_no_call_of_hermes_is_content() {
    let form = CallForm::Hermes;
    for text in [
        "no call",
        "",
        " \n ",
        "a < b",
        "<tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"argum",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"a\": \"never closed}}\n</tool_call>",
        "<tool_call>weather(town)</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 7, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"text\"}</tool_call>",
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {}} and then</tool_call>",
        "</tool_call> {\"name\": \"f\", \"arguments\": {}}",
        " x <tool_cal",
    ] {
        content(form, text);
    }
    let call = "<tool_call>{\"name\": \"noop\", \"arguments\": {}}</tool_call>";
    calls(form, &format!("<tool_call>oops {call}"), "<tool_call>oops", &["noop({})"]);
    calls(form, &format!("<tool_call> {call}"), "<tool_call> ", &["noop({})"]);
    calls(form, &format!("{call}\n<tool_call>oops"), "\n<tool_call>oops", &["noop({})"]);
    calls(form, &format!("<{call}"), "<", &["noop({})"]);
}

#[test]
fn mistral_calls_are_a_list_after_its_mark() {
    let form = CallForm::Mistral;
    let one = r#"{"name": "weather", "arguments": {"town": "Köln"}, "id": "abcdefghi"}"#;
    let want = r#"weather({"town":"Köln"})"#;
    calls(form, &format!("[TOOL_CALLS] [{one}]"), "", &[want]);
    calls(form, &format!("[TOOL_CALLS][{one}, {one}]"), "", &[want, want]);
    calls(form, &format!("Well. [TOOL_CALLS] [{one}]"), "Well.", &[want]);
    for text in [
        "a [list] of [things",
        "[TOOL_CALLS]",
        "[TOOL_CALLS] []",
        "[TOOL_CALLS] [{\"name\": \"weather\", \"argum",
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}}",
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}},]",
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}, 7]",
        "[TOOL_CALLS]f{\"a\": 1}",
        "[{\"name\": \"weather\", \"arguments\": {}}]",
    ] {
        content(form, text);
    }
}

#[test]
fn llama_calls_are_the_whole_answer_or_follow_a_mark() {
    let form = CallForm::Llama;
    let one = r#"{"name": "weather", "parameters": {"town": "Köln"}}"#;
    let want = r#"weather({"town":"Köln"})"#;
    calls(form, one, "", &[want]);
    calls(form, &format!("\n\n{one}\n"), "", &[want]);
    calls(form, &format!("{one}; {one}"), "", &[want, want]);
    calls(form, &format!("<|python_tag|>{one}"), "", &[want]);
    calls(form, &format!("I see. <|python_tag|>{one}\n"), "I see.", &[want]);
    calls(form, r#"{"type": "function", "name": "noop", "parameters": {}}"#, "", &["noop({})"]);
    // A mark says that it is a call, whatever is called.
    calls(form, r#"<|python_tag|>{"name": "other", "parameters": {}}"#, "", &["other({})"]);
    for text in [
        r#"{"name": "other", "parameters": {}}"#.to_owned(),
        r#"{"name": "Ada", "born": 1815}"#.to_owned(),
        format!("{one} is what I would call"),
        format!("{one}; and {one}"),
        format!("I would call {one}"),
        "{\"name\": \"weather\", \"param".to_owned(),
        "{ a set }".to_owned(),
        "<|python_tag|>brave_search.call(query=\"Köln\")".to_owned(),
        "<|python_tag|>".to_owned(),
    ] {
        content(form, &text);
    }
}

#[test]
fn only_what_may_be_a_call_is_held_back() {
    let mut hermes = reader(CallForm::Hermes);
    let mut pushed = |text: &str| hermes.push(text).text;
    assert_eq!(
        ["a ", "<b <tool", "_cal", "x ", "\n", "y"].map(&mut pushed),
        ["a", " <b", "", " <tool_calx", "", " \ny"]
    );
    assert_eq!(hermes.push("<tool_call>{\"name\": \"f\"} ").text, "");
    let read = hermes.push("</tool_call>");
    assert_eq!((read.text.as_str(), read.calls.len()), ("", 1));
    let mut llama = reader(CallForm::Llama);
    assert_eq!(["The ", "set {1", "}"].map(|text| llama.push(text).text), ["The", " set {1", "}"]);
    let mut llama = reader(CallForm::Llama);
    assert_eq!(["{\"a\": {", "1}", "}", "b"].map(|text| llama.push(text).text), ["", "", "{\"a\": {1}}", "b"]);
}

#[test]
fn only_the_first_call_is_told_where_no_more_are_wanted() {
    let one = r#"{"name": "noop", "arguments": {"n": 1}}"#;
    let other = one.replace('1', "2");
    for (form, text) in [
        (CallForm::Hermes, format!("<tool_call>{one}</tool_call><tool_call>{other}</tool_call>")),
        (CallForm::Mistral, format!("[TOOL_CALLS][{one},{other}]")),
        (CallForm::Llama, format!("{one};{other}")),
    ] {
        let mut only = reader(form);
        only.rules.only_first = true;
        let first = Call { name: "noop".to_owned(), arguments: "{\"n\":1}".to_owned() };
        assert_eq!(all(only, [text.as_str()]), Read { text: String::new(), calls: vec![first] }, "{form:?}");
        assert_eq!(told(form, &text).1.len(), 2, "{form:?}");
    }
}

#[test]
fn forms_are_told_by_what_a_template_writes() {
    let cases = |name: &str| {
        let file = format!("{}/src/process/generation/template/cases/{name}", env!("CARGO_MANIFEST_DIR"));
        CallForm::of(&std::fs::read_to_string(file).unwrap())
    };
    assert_eq!(cases("thinking.jinja"), Some(CallForm::Hermes));
    assert_eq!(cases("inst.jinja"), Some(CallForm::Mistral));
    assert_eq!(cases("headers.jinja"), Some(CallForm::Llama));
    assert_eq!(["chatml.jinja", "turns.jinja", "sys.jinja"].map(cases), [None; 3]);
    for (template, form) in [
        (r#"{{- '<|im_start|>' }}<tool_call>\n{\"name\": <function-name>, \"arguments\": {}}"#, Some(CallForm::Hermes)),
        ("<|start_header_id|>{{- \"<|python_tag|>\" + tool_call.name + \".call(\" }}", Some(CallForm::Llama)),
        ("<tool_call>\n<function={{ tool_call.name }}>\n<parameter=", None),
        ("<tool_call>{{ tc.name }}\n<arg_key>", None),
        ("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", None),
        ("{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|tool_call|>", None),
    ] {
        assert_eq!(CallForm::of(template), form, "{template}");
    }
}

/// What answers are made of, and what nearly is.
const PIECES: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "{\"name\": \"noop\", \"arguments\": {\"a\": \"é}\"}}",
    "{\"name\": \"weather\", \"parameters\": {}}",
    "{\"name\": 1}",
    "[{\"name\": \"noop\", \"arguments\": {}}]",
    "<tool",
    "<",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "\\",
    ";",
    ",",
    " ",
    "\n",
    "é",
    "word",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn however_a_text_is_cut_its_content_and_calls_are_the_same(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..14),
        cuts in proptest::collection::vec(0usize..200, 0..12),
    ) {
        let text = pieces.concat();
        let mut places: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
        places.extend([0, text.len()]);
        places.sort_unstable();
        for form in FORMS {
            let whole = all(reader(form), [text.as_str()]);
            let cut = places.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            prop_assert_eq!(&all(reader(form), cut), &whole, "{:?} of {:?}", form, &text);
            let letters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
            prop_assert_eq!(&all(reader(form), letters), &whole, "{:?} of {:?}", form, &text);
            // Nothing is lost, and nothing comes twice.
            if whole.calls.is_empty() {
                prop_assert_eq!(&whole.text, &text, "{:?}", form);
            } else {
                let mut rest = text.chars();
                prop_assert!(whole.text.chars().all(|c| rest.any(|other| other == c)), "{:?} of {:?}", form, &text);
            }
        }
    }
}
