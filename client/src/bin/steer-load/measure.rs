//! One request, and when its tokens came.

use std::time::{Duration, Instant};

use steering_client::{Client, Error, generation::Event, v1};
use tonic::Code;

/// When a request was made and its tokens came, of all variants together.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// When it was sent; in open loop, when it should have been.
    pub(crate) start: Instant,
    pub(crate) times: Vec<Instant>,
}

impl Sample {
    pub(crate) fn tokens(&self) -> usize {
        self.times.len()
    }

    pub(crate) fn time_to_first(&self) -> Option<Duration> {
        self.times
            .first()
            .map(|first| first.duration_since(self.start))
    }

    /// Mean time from a token to the next; none below two tokens.
    pub(crate) fn time_per_token(&self) -> Option<Duration> {
        let (first, last) = (self.times.first()?, self.times.last()?);
        let gaps = u32::try_from(self.times.len() - 1).ok()?;
        last.duration_since(*first).checked_div(gaps)
    }

    /// Times between tokens.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.times
            .windows(2)
            .map(|pair| pair[1].duration_since(pair[0]))
    }
}

/// Runs a request to its end and calls back at every token.
pub(crate) async fn run(
    client: &Client,
    request: v1::GenerateRequest,
    start: Instant,
    mut on_token: impl FnMut(Instant),
) -> Result<Sample, Error> {
    let mut stream = client.generate(request).await?;
    let mut times = Vec::new();
    while let Some(event) = stream.next().await? {
        if let Event::Token(_) = event {
            let now = Instant::now();
            on_token(now);
            times.push(now);
        }
    }
    Ok(Sample { start, times })
}

/// Whether the worker said that its queue is full.
pub(crate) fn is_refusal(error: &Error) -> bool {
    let code = error.status().map(tonic::Status::code);
    code == Some(Code::ResourceExhausted)
}
