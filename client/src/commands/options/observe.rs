//! What is read from the model while it writes, and what ends it.

use clap::{Args, ValueEnum};
use steering_client::{Client, Condition, Error, GenerationBuilder, Lookup, Readout, v1};

/// What is read, and what ends a generation. The command that takes these has a
/// group "named" of what names CAVs or features.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reading")]
pub(crate) struct ObserveOptions {
    /// Report LABEL, #INDEX, SAE::LABEL or cav:NAME at every token; may be repeated.
    #[arg(long = "probe", value_name = "READOUT", groups = ["named", "readings"])]
    pub(crate) probes: Vec<Readout>,
    /// End where READOUT is above (or below) VALUE; may be repeated.
    #[arg(long, value_name = "READOUT>VALUE", group = "named")]
    stop_when: Vec<Condition>,
    /// Report how far the next-token distribution is from the unsteered model's (costs a
    /// second sequence).
    #[arg(long)]
    kl: bool,
    /// Report the size of the edits, |Δ|/|x|, at every token and hook point.
    #[arg(long, group = "readings")]
    edit_norms: bool,
    /// Report readings of every prompt token too.
    #[arg(long, requires = "readings")]
    prompt_readings: bool,
    /// Place in the worker's queue.
    #[arg(long, value_enum, value_name = "CLASS")]
    pub(crate) priority: Option<Priority>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Priority {
    /// Someone is waiting (the default).
    Interactive,
    /// Bulk work that yields to interactive requests.
    Batch,
}

impl From<Priority> for v1::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Interactive => Self::Interactive,
            Priority::Batch => Self::Batch,
        }
    }
}

impl ObserveOptions {
    /// All that is read.
    pub(crate) fn readouts(&self) -> impl Iterator<Item = &Readout> {
        let conditions = self.stop_when.iter().map(|condition| &condition.readout);
        self.probes.iter().chain(conditions)
    }

    /// Puts probes, stop conditions and the rest into a request.
    pub(crate) async fn apply(
        &self,
        client: &Client,
        lookup: Lookup<'_>,
        builder: &mut GenerationBuilder,
    ) -> Result<(), Error> {
        let readouts = client.resolve_readouts(&self.probes, lookup, builder);
        for (probe, readout) in self.probes.iter().zip(readouts.await?) {
            builder.probe(probe.to_string(), readout);
        }
        let conditions = client.resolve_conditions(&self.stop_when, lookup, builder);
        let conditions = conditions.await?;
        builder.stop_when(conditions);
        if self.kl || self.edit_norms || self.prompt_readings {
            builder.telemetry(v1::Telemetry {
                edit_norms: self.edit_norms,
                kl_divergence: self.kl,
                prompt_readings: self.prompt_readings,
            });
        }
        if let Some(priority) = self.priority {
            builder.priority(priority.into());
        }
        Ok(())
    }
}
