//! A conversation and how it is steered.

use std::io::IsTerminal;

use serde::Serialize;
use steering_client::{
    Client, Error, GenerationBuilder, Steering, Transcript, generation::Event, prompt, v1,
};

use super::input::{self, Line};
use crate::{commands::options::ObserveOptions, failure::hinted, output, report, series};

/// What comes after a line.
pub(super) enum Step {
    On,
    Quit,
}

/// What holds for a whole session; only the seed changes.
pub(super) struct Config {
    /// Whether answers are kept for the document only.
    pub(super) quiet: bool,
    pub(super) system: Option<String>,
    pub(super) observe: ObserveOptions,
    pub(super) sampling: v1::Sampling,
}

pub(super) struct Session {
    client: Client,
    config: Config,
    steering: Steering,
    /// The user's messages and the answers to them.
    messages: Vec<v1::ChatMessage>,
    turns: Vec<Turn>,
    warnings: Vec<String>,
}

/// One answer.
struct Turn {
    user: String,
    baseline: bool,
    transcript: Transcript,
}

#[derive(Serialize)]
pub(super) struct Document<'a> {
    turns: Vec<TurnDocument<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct TurnDocument<'a> {
    user: &'a str,
    baseline: bool,
    model: &'a str,
    prompt_token_ids: &'a [u32],
    seed: u64,
    probes: &'a [String],
    #[serde(flatten)]
    variant: Option<report::VariantDocument<'a>>,
}

impl<'a> TurnDocument<'a> {
    fn new(turn: &'a Turn) -> Self {
        let Turn {
            user,
            baseline,
            transcript,
        } = turn;
        let variant = transcript.variants.first();
        Self {
            user,
            baseline: *baseline,
            model: &transcript.model_id,
            prompt_token_ids: &transcript.prompt_token_ids,
            seed: transcript.seed,
            probes: &transcript.probe_names,
            variant: variant.map(|v| report::VariantDocument::new(transcript, v)),
        }
    }
}

impl Session {
    pub(super) fn new(client: Client, config: Config) -> Self {
        Self {
            client,
            config,
            steering: Steering::default(),
            messages: Vec::new(),
            turns: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn document(&self) -> Document<'_> {
        Document {
            turns: self.turns.iter().map(TurnDocument::new).collect(),
            warnings: &self.warnings,
        }
    }

    /// Does what a line asks for.
    pub(super) async fn take(&mut self, line: &str) -> anyhow::Result<Step> {
        let line = input::parse(line).map_err(|what| hinted(what, "/help lists the commands"))?;
        match line {
            Line::Empty => {}
            Line::Say(text) => self.say(text).await?,
            Line::Feature(edit) => {
                let mut steering = self.steering.clone();
                steering.features.push(edit);
                self.replace_feature(steering).await?;
            }
            Line::Cav(edit) => {
                let mut steering = self.steering.clone();
                steering.cavs.retain(|other| other.cav != edit.cav);
                steering.cavs.push(edit);
                self.steer(steering).await?;
            }
            Line::Clear => {
                self.steering.features.clear();
                self.steering.cavs.clear();
            }
            Line::Steer => self.show_steering(),
            Line::Baseline => self.baseline().await?,
            Line::Seed(seed) => self.config.sampling.seed = seed,
            Line::Reset => self.messages.clear(),
            Line::Help => output::note(input::HELP),
            Line::Quit => return Ok(Step::Quit),
        }
        Ok(Step::On)
    }

    /// Takes over edits of which the last replaces another of its feature: two
    /// different ones would contradict each other. One feature may have several names.
    async fn replace_feature(&mut self, mut steering: Steering) -> anyhow::Result<()> {
        let mut scratch = GenerationBuilder::default();
        let resolved = self.client.resolve(&steering, &mut scratch);
        let edits = interruptible(async { Ok(resolved.await?) }).await?;
        let row = |edit: &v1::Intervention| match &edit.edit {
            Some(v1::intervention::Edit::Feature(edit)) => Some(edit.feature),
            _ => None,
        };
        // Features come first, in their order.
        let mut rows: Vec<_> = edits[..steering.features.len()].iter().map(row).collect();
        if let (Some(last), Some(edit)) = (rows.pop(), steering.features.pop()) {
            let mut rows = rows.into_iter();
            steering.features.retain(|_| rows.next() != Some(last));
            steering.features.push(edit);
        }
        self.steering = steering;
        Ok(())
    }

    /// Takes over edits that the registry can resolve; others leave things as they were.
    pub(super) async fn steer(&mut self, steering: Steering) -> anyhow::Result<()> {
        let mut scratch = GenerationBuilder::default();
        let resolved = self.client.resolve(&steering, &mut scratch);
        interruptible(async { Ok(resolved.await?) }).await?;
        self.steering = steering;
        Ok(())
    }

    fn show_steering(&self) {
        if self.steering.is_empty() {
            output::note("unsteered");
        }
        for edit in &self.steering.features {
            output::note(format_args!("feature {edit}"));
        }
        for edit in &self.steering.cavs {
            output::note(format_args!("cav {edit}"));
        }
    }

    async fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let mut messages = self.messages.clone();
        messages.push(prompt::message("user", text));
        // A message without an answer is not part of the conversation.
        let answer = self.answer(&messages, false).await?;
        messages.push(prompt::message("assistant", answer));
        self.messages = messages;
        Ok(())
    }

    /// The last message answered again; the conversation goes on with the first answer.
    async fn baseline(&mut self) -> anyhow::Result<()> {
        let Some(last) = self.messages.iter().rposition(|m| m.role == "user") else {
            let hint = "say something first";
            return Err(hinted("there is no message to answer again", hint));
        };
        let messages = self.messages[..=last].to_vec();
        self.answer(&messages, true).await.map(|_| ())
    }

    /// Answers the last of the messages, streaming the text.
    async fn answer(
        &mut self,
        messages: &[v1::ChatMessage],
        baseline: bool,
    ) -> anyhow::Result<String> {
        let mut stream = interruptible(async {
            let request = self.request(messages, baseline).await?;
            Ok(self.client.generate(request).await?)
        })
        .await?;
        let mut transcript = Transcript::default();
        loop {
            tokio::select! {
                event = stream.next() => match event? {
                    Some(event) => {
                        transcript.apply(&event);
                        self.show(&event)?;
                    }
                    None => break,
                },
                signal = tokio::signal::ctrl_c() => {
                    signal?;
                    if !std::io::stdin().is_terminal() {
                        anyhow::bail!("interrupted");
                    }
                    // Dropping the stream ends the generation; what was said stays said.
                    break;
                }
            }
        }
        self.finish(&transcript)?;
        let text = transcript
            .variants
            .first()
            .map(|variant| variant.text.clone());
        let user = messages.last().map(|message| message.content.clone());
        self.turns.push(Turn {
            user: user.unwrap_or_default(),
            baseline,
            transcript,
        });
        Ok(text.unwrap_or_default())
    }

    async fn request(
        &self,
        messages: &[v1::ChatMessage],
        baseline: bool,
    ) -> Result<v1::GenerateRequest, Error> {
        let system = self.config.system.as_deref();
        let system = system.map(|content| prompt::message("system", content));
        let messages = system.into_iter().chain(messages.iter().cloned());
        let mut builder = GenerationBuilder::new(prompt::chat(messages.collect(), true));
        builder.sampling(self.config.sampling.clone());
        if baseline || self.steering.is_empty() {
            builder.variant("baseline", Vec::new());
        } else {
            let edits = self.client.resolve(&self.steering, &mut builder).await?;
            builder.variant("steered", edits);
        }
        let lookup = self.steering.lookup();
        self.config
            .observe
            .apply(&self.client, lookup, &mut builder)
            .await?;
        Ok(builder.build())
    }

    fn show(&self, event: &Event) -> std::io::Result<()> {
        match event {
            Event::Token(token) if !self.config.quiet => output::text(&token.text),
            Event::Finished(finished) if !self.config.quiet => output::text(&finished.text),
            Event::Started(_) | Event::Token(_) | Event::Finished(_) => Ok(()),
        }
    }

    fn finish(&mut self, transcript: &Transcript) -> std::io::Result<()> {
        if !self.config.quiet {
            output::line("")?;
            series::print(transcript)?;
        }
        for warning in &transcript.warnings {
            if !self.warnings.contains(warning) {
                output::warning(warning);
                self.warnings.push(warning.clone());
            }
        }
        if !self.config.quiet {
            for line in report::lines(transcript) {
                output::dim(output::printable(&line));
            }
        }
        Ok(())
    }
}

/// Waits for a service, which may take its time, or for Ctrl-C: once a chat has listened for
/// that, nothing else ends it.
async fn interruptible<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            anyhow::bail!("interrupted")
        }
    }
}
