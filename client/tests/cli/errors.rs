//! Failures: exit codes, and errors with hints on standard error.

use std::time::Duration;

use steering_client::v1;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    process::Child,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::mock::{Mock, Shared, command, dead_url, lock, run};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there() {
    let url = dead_url().await;
    let mut steer = command(env!("CARGO_BIN_EXE_steer"));
    steer.args(["generate", "hi", "--json", "--worker", &url]);
    let result = run(steer, "").await;
    let error = format!("error: cannot reach the worker at {url}");
    result.fails(
        1,
        &[
            &error,
            "refused",
            "hint: is steer-worker running? try `steer up",
        ],
    );
    assert_eq!(result.stdout, "");
    let mut steer = command(env!("CARGO_BIN_EXE_steer"));
    steer.args(["saes", "list", "--registry", &url]);
    run(steer, "")
        .await
        .fails(1, &["cannot reach the registry", "steer-registry running?"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_exits_with_2() {
    let mock = Mock::start().await;
    let cases: [(&[&str], &str); 14] = [
        (&[], "Usage"),
        (&["generate"], "PROMPT"),
        (&["generate", "hi", "--feature", "baseball"], "has no value"),
        (
            &["generate", "hi", "--feature", "baseball=lots"],
            "not a finite number",
        ),
        (
            &["generate", "hi", "--cav", "one:clamp=2..1"],
            "above the upper",
        ),
        (&["generate", "hi", "--compare"], "--feature"),
        (&["generate", "hi", "--positions", "prompt"], "--feature"),
        (
            &["generate", "hi", "--cav", "one=1", "--window", "5:5"],
            "END must be above START",
        ),
        (
            &["generate", "hi", "--hook", "blocks.0.hook_mlp_out"],
            "--cav",
        ),
        (
            &["generate", "hi", "--raw", "--system", "x"],
            "cannot be used with",
        ),
        (
            &["generate", "hi", "--greedy", "--do-sample"],
            "cannot be used with",
        ),
        (
            &["generate", "hi", "--worker", "nowhere"],
            "http://host:port",
        ),
        (&["saes", "import", "a/b"], "--name"),
        (&["up"], "--model"),
    ];
    for (args, text) in cases {
        mock.steer(args).await.fails(2, &[text]);
    }
    assert!(lock(&mock.worker.requests).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn violations_lead_to_options() {
    let mock = Mock::start().await;
    let details = ErrorDetails::with_bad_request_violation("sampling.top_p", "is 3; at most 1");
    let message = "sampling.top_p: is 3; at most 1";
    let status = Status::with_error_details(Code::InvalidArgument, message, details);
    mock.worker.refuse(status);
    let result = mock.steer(&["generate", "hi", "--top-p", "3"]).await;
    result.fails(
        1,
        &[
            "error: sampling.top_p: is 3; at most 1",
            "hint: see --top-p",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_template_leads_to_raw() {
    let mock = Mock::start().await;
    mock.worker.refuse(Status::failed_precondition(
        "this model has no chat template",
    ));
    mock.steer(&["generate", "hi"])
        .await
        .fails(1, &["hint: use --raw"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let mock = Mock::start().await;
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(500)));
    let status = Status::with_error_details(Code::ResourceExhausted, "the queue is full", details);
    mock.worker.refuse(status);
    mock.steer(&["generate", "hi"])
        .await
        .fails(1, &["the queue is full", "try again in 0.5 s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_come_with_suggestions() {
    let mock = Mock::start().await;
    for args in [
        ["generate", "hi", "--feature", "basebal=1"].as_slice(),
        &["features", "show", "basebal"],
    ] {
        let texts = [
            "no feature is labelled \"basebal\"",
            "did you mean \"baseball\"?",
        ];
        mock.steer(args).await.fails(1, &texts);
    }
    let result = mock.steer(&["generate", "hi", "--cav", "none=1"]).await;
    result.fails(1, &["no CAV is named \"none\"", "steer cavs list"]);
    assert!(lock(&mock.worker.requests).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fraction_of_an_unknown_maximum_is_refused() {
    let mock = Mock::start().await;
    let result = mock
        .steer(&["generate", "hi", "--feature", "cooking=0.5max"])
        .await;
    result.fails(
        1,
        &["knows no maximum activation of l1#9 (\"cooking\")", "hint:"],
    );
    let result = mock
        .steer(&["generate", "hi", "--feature", "#10=0.5max"])
        .await;
    result.fails(1, &["knows no maximum activation of l1#10\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_point_that_nothing_would_use_is_refused() {
    let mock = Mock::start().await;
    let hook = "--hook=blocks.0.hook_resid_post";
    for args in [
        ["generate", "hi", "--feature", "baseball=1", hook].as_slice(),
        &["score", "hi", "you", "--feature", "baseball=1", hook],
        &["sweep", "hi", "--feature", "baseball", hook],
        &["project", "baseball", hook],
    ] {
        let result = mock.steer(args).await;
        result.fails(1, &["--hook is for CAVs, and none is named", "hint:"]);
    }
    assert!(lock(&mock.worker.requests).is_empty());
    let read = ["generate", "hi", "--probe", "cav:one", hook];
    mock.steer(&read).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cav_without_its_vector_is_not_sent() {
    let mock = Mock::start().await;
    let result = mock.steer(&["generate", "hi", "--cav", "bare=1"]).await;
    result.fails(1, &["the registry broke the contract"]);
    assert!(lock(&mock.worker.requests).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_is_a_failure() {
    let mock = Mock::start().await;
    *lock(&mock.worker.events_max) = Some(3);
    let result = mock.steer(&["generate", "hi", "--json"]).await;
    result.fails(1, &["ended the stream before every variant finished"]);
    assert_eq!(result.stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_prompt_is_refused_here() {
    let mock = Mock::start().await;
    mock.steer(&["generate", ""])
        .await
        .fails(1, &["the prompt is empty"]);
    mock.steer_with_input(&["generate", "-"], "\n")
        .await
        .fails(1, &["the prompt is empty"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_is_no_text_is_refused_here() {
    let mock = Mock::start().await;
    for args in [["generate", "-"].as_slice(), &["chat"]] {
        let result = run(mock.command(args), b"\xff\xfe").await;
        result.fails(1, &["standard input is not UTF-8 text", "hint: `iconv"]);
    }
}

/// Until a worker that never ends is answering.
async fn answering(requests: &Shared<Vec<v1::GenerateRequest>>) {
    while lock(requests).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_the_middle_is_told_as_that() {
    let mock = Mock::start().await;
    *lock(&mock.worker.stalls) = true;
    let requests = mock.worker.requests.clone();
    let worker = mock.worker_url().replace("http://", "");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.expect("a connection");
        let mut far = TcpStream::connect(worker).await.expect("the worker");
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut near, &mut far) => drop(copied),
            () = answering(&requests) => {} // and both ends are closed
        }
    });
    let mut steer = mock.command(&["generate", "hi"]);
    steer.env("STEER_WORKER", &url);
    let result = run(steer, "").await;
    let error = format!("error: the connection to the worker at {url} broke in the middle");
    result.fails(1, &[&error, "hint: `steer status`"]);
    assert_eq!(result.stdout, "Hello é!");
}

/// Interrupts a command, and waits for its end.
#[cfg(unix)]
async fn interrupt(mut child: Child) -> std::process::Output {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.expect("it runs"), Signal::INT).expect("signal");
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
    ended.expect("in time").expect("steer ends");
    drop(child.stdin.take());
    child.wait_with_output().await.expect("its output")
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_chat_whose_registry_says_nothing() {
    let mock = Mock::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let mut steer = mock.command(&["chat"]);
    let mut child = steer
        .env("STEER_REGISTRY", &url)
        .spawn()
        .expect("steer starts");
    let stdin = child.stdin.as_mut().expect("piped");
    stdin
        .write_all(b"/feature baseball=1\n")
        .await
        .expect("read");
    let asked = silent.accept().await.expect("a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let output = interrupt(child).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "error: interrupted\n");
    drop(asked);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_generation_cleanly() {
    let mock = Mock::start().await;
    *lock(&mock.worker.stalls) = true;
    let child = mock
        .command(&["generate", "hi"])
        .spawn()
        .expect("steer starts");
    answering(&mock.worker.requests).await;
    let output = interrupt(child).await;
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&stdout), "Hello é!");
    assert_eq!(stderr, "error: interrupted\n");
}
