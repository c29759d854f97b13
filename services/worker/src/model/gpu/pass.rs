//! One step's way through the layers.

use std::collections::BTreeSet;

use candle_core::Result;
use half::bf16;
use steering_proto::{HookPoint, Site};

use super::{
    GpuDecoder, MOST_SPLITS, SPLIT, SPLIT_ROWS, address,
    between::Between,
    is_interleaved,
    launch::Address,
    parameters::{Attention, Rotate, Simple},
    products::Output,
    room::{Room, attention_blocks},
    tables::{self, Span, Tables},
};
use crate::model::{Batch, Edited, Hook, ModelConfig, Scores, step::Step};

/// A step in which each layer reads what the one before has written.
pub(super) struct Pass<'a> {
    pub(super) decoder: &'a mut GpuDecoder,
    pub(super) config: &'a ModelConfig,
    pub(super) batch: &'a Batch,
    pub(super) step: Step<'a>,
    pub(super) spans: &'a [Span],
    /// `shared.layers` of the batch's chunks.
    pub(super) joins: BTreeSet<usize>,
    pub(super) tables: Tables,
    pub(super) spans_at: usize,
    pub(super) head_rows_at: usize,
    pub(super) top_counts_at: usize,
    pub(super) room: Room,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        decoder: &'a mut GpuDecoder,
        config: &'a ModelConfig,
        batch: &'a Batch,
        step: Step<'a>,
        spans: &'a [Span],
    ) -> Result<Self> {
        let room = Room::new(decoder, config, batch)?;
        let shared = batch.chunks.iter().filter_map(|chunk| chunk.shared);
        Ok(Self {
            joins: shared.map(|shared| shared.layers).collect(),
            decoder,
            config,
            batch,
            step,
            spans,
            tables: Tables::default(),
            spans_at: 0,
            head_rows_at: 0,
            top_counts_at: 0,
            room,
        })
    }

    pub(super) fn run(mut self, hook: &mut dyn Hook, scores: &mut Scores) -> Result<()> {
        let n_layers = self.config.layers.len();
        self.begin_part(hook, None)?;
        self.embed()?;
        let point = |layer, site| (layer < n_layers).then_some(HookPoint { layer, site });
        let first = Between {
            adds: false,
            post_norm: 0,
            points: [None, None, point(0, Site::ResidPre)],
            join: None,
            norm: self.decoder.layers[0].attention_norm,
        };
        self.between(hook, &first)?;
        for layer in 0..n_layers {
            self.attention(hook, layer)?;
            let weights = &self.decoder.layers[layer];
            let after_attention = Between {
                adds: true,
                post_norm: weights.attention_post_norm,
                points: [point(layer, Site::AttnOut), None, None],
                join: None,
                norm: weights.mlp_norm,
            };
            let next = self.decoder.layers.get(layer + 1);
            let after_mlp = Between {
                adds: true,
                post_norm: weights.mlp_post_norm,
                points: [
                    point(layer, Site::MlpOut),
                    point(layer, Site::ResidPost),
                    point(layer + 1, Site::ResidPre),
                ],
                join: Some(layer + 1),
                norm: next.map_or(self.decoder.final_norm, |next| next.attention_norm),
            };
            self.between(hook, &after_attention)?;
            self.mlp(layer)?;
            self.between(hook, &after_mlp)?;
        }
        self.score(scores)?;
        self.end_part(hook)
    }

    /// Prepares for the hook points from the one at which chunks have joined on.
    pub(super) fn begin_part(&mut self, hook: &dyn Hook, joined: Option<usize>) -> Result<()> {
        let n_layers = self.config.layers.len();
        let mut tables = Tables::new(self.batch, &self.step);
        let begins =
            |point: &HookPoint| point.site == Site::ResidPost && joined == Some(point.layer + 1);
        let ends = |point: &HookPoint| {
            let joins = point.site == Site::ResidPost && self.joins.contains(&(point.layer + 1));
            joins && !begins(point)
        };
        let part = tables::points(n_layers)
            .skip_while(|point| joined.is_some() && !begins(point))
            .take_while(|point| !ends(point));
        for point in part {
            tables.ask(hook, point, self.width(point.site), &self.decoder.gpu)?;
        }
        self.spans_at = tables.push(self.spans);
        let mut rows = self.batch.logit_rows();
        rows.extend(self.batch.top_rows());
        self.head_rows_at = tables.push(&rows);
        self.top_counts_at = tables.push(&self.batch.top_counts());
        let decoder = &mut *self.decoder;
        tables.upload(&decoder.gpu, &mut decoder.buffers.tables)?;
        let touches = tables.n_edits() * size_of::<Edited>();
        self.room.touches = decoder.buffers.touches.room(&decoder.gpu, touches)?;
        self.tables = tables;
        Ok(())
    }

    fn width(&self, site: Site) -> usize {
        match site {
            Site::Z => self.config.z_width(),
            Site::ResidPre | Site::AttnOut | Site::MlpOut | Site::ResidPost => self.config.d_model,
        }
    }

    /// Reports what came of the edits since the part's beginning.
    pub(super) fn end_part(&mut self, hook: &mut dyn Hook) -> Result<()> {
        if self.tables.n_edits() == 0 {
            return Ok(());
        }
        let mut edited = vec![Edited::default(); self.tables.n_edits()];
        self.decoder.gpu.read(self.room.touches, &mut edited)?;
        self.tables.report(hook, &edited);
        Ok(())
    }

    fn embed(&mut self) -> Result<()> {
        let spans = self.step.spans();
        let tokens = spans.iter().flat_map(|span| &span.chunk.tokens);
        let ids: Vec<u32> = tokens.copied().collect();
        self.decoder.gpu.write(&ids, self.room.ids)?;
        let width = self.config.d_model;
        let factor = match self.config.scale_embeddings {
            // Rounded to the model's type first, as transformers does.
            true => bf16::from_f32((width as f64).sqrt() as f32).to_f32(),
            false => 1.0,
        };
        let (from, with) = (self.decoder.embedding, self.room.ids);
        self.gather(from, with, self.room.x, ids.len(), factor)
    }

    pub(super) fn gather(
        &self,
        from: Address,
        with: Address,
        out: Address,
        n: usize,
        factor: f32,
    ) -> Result<()> {
        let simple = Simple {
            from,
            with,
            out,
            width: self.config.d_model as u32,
            factor,
            ..Simple::default()
        };
        let kernel = &self.decoder.kernels.gather;
        let shape = ((n as u32, 1, 1), 256);
        self.decoder.gpu.launch(kernel, shape, simple)
    }

    fn attention(&mut self, hook: &mut dyn Hook, layer: usize) -> Result<()> {
        let (c, d) = (self.config, &*self.decoder);
        let weights = &d.layers[layer];
        let n = self.tables.n_rows;
        let heads = c.n_heads + 2 * c.n_kv_heads;
        let shape = [heads * c.head_dim, c.d_model, n];
        self.product(
            Output::Plain,
            &weights.qkv,
            self.room.normed,
            self.room.qkv,
            shape,
        )?;
        let stride = self.batch.chunks.len() * size_of::<Span>();
        let spans = self.tables.at(self.spans_at + layer * stride);
        let rotate = Rotate {
            qkv: self.room.qkv,
            places: self.tables.places(),
            spans,
            frequencies: address(&d.frequencies[weights.rope]),
            q_norm: weights.q_norm,
            k_norm: weights.k_norm,
            n_rows: n as u32,
            n_heads: c.n_heads as u32,
            n_kv_heads: c.n_kv_heads as u32,
            head_dim: c.head_dim as u32,
            eps: c.norm_eps as f32,
            scale_in_float: u32::from(c.norm_weight_offset),
            interleaved: is_interleaved(c, weights.rope),
            unused: 0,
        };
        let places = self.tables.places.len() as u32;
        let shape = ((places, heads.div_ceil(4) as u32, 1), 128);
        d.gpu.launch(&d.kernels.rotate, shape, rotate)?;
        self.attend(layer, spans)?;
        self.edit(
            hook,
            HookPoint {
                layer,
                site: Site::Z,
            },
            self.room.z,
            c.z_width(),
        )?;
        let o = &self.decoder.layers[layer].o;
        let shape = [c.d_model, c.z_width(), n];
        self.product(Output::Plain, o, self.room.z, self.room.added, shape)
    }

    fn attend(&self, layer: usize, spans: Address) -> Result<()> {
        let (c, d) = (self.config, &*self.decoder);
        let window = d.layers[layer].window;
        let rows = &self.tables.places[..self.tables.n_rows];
        let seen = |position: u32| match window {
            0 => position as usize + 1,
            window => (position + 1).min(window) as usize,
        };
        let longest = rows.iter().map(|place| seen(place.position)).max();
        let longest = longest.unwrap_or(1);
        let split = match rows.len() {
            0..=SPLIT_ROWS => SPLIT * longest.div_ceil(SPLIT * MOST_SPLITS),
            _ => 0,
        };
        let n_splits = if split == 0 {
            1
        } else {
            longest.div_ceil(split)
        };
        let attention = Attention {
            qkv: self.room.qkv,
            out: self.room.z,
            places: self.tables.places(),
            spans,
            partial: self.room.partial,
            arrived: self.room.arrived,
            n_heads: c.n_heads as u32,
            n_kv_heads: c.n_kv_heads as u32,
            head_dim: c.head_dim as u32,
            scale: c.attention_scale as f32,
            cap: c.attention_softcap.unwrap_or(0.0) as f32,
            window,
            split: split as u32,
            unused: 0,
        };
        let blocks = (
            attention_blocks(c) as u32,
            n_splits as u32,
            rows.len() as u32,
        );
        d.gpu.launch(&d.kernels.attention, (blocks, 512), attention)
    }

    fn mlp(&self, layer: usize) -> Result<()> {
        let (c, n) = (self.config, self.tables.n_rows);
        let weights = &self.decoder.layers[layer];
        let (up, down) = ([c.d_mlp, c.d_model, n], [c.d_model, c.d_mlp, n]);
        self.product(
            Output::Gated,
            &weights.gate_up,
            self.room.normed,
            self.room.mlp,
            up,
        )?;
        self.product(
            Output::Plain,
            &weights.down,
            self.room.mlp,
            self.room.added,
            down,
        )
    }
}
