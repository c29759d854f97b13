//! One step's way through the layers.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use steering_proto::{HookPoint, Site};

use super::{
    BEST_PARTS, FEW_ROWS, GpuDecoder, MOST_SPLITS, SPLIT, SPLIT_ROWS, activation, address,
    is_interleaved,
    launch::{Address, Kernel},
    parameters::{Attention, Boundary, Product, Rotate, Simple},
    tables::{self, Span, Tables, Work},
    weights::Map,
};
use crate::model::{Batch, Best, Edited, Hook, ModelConfig, Scores, step::Step};

/// A step in which each layer reads what the one before has written.
pub(super) struct Pass<'a> {
    decoder: &'a mut GpuDecoder,
    config: &'a ModelConfig,
    batch: &'a Batch,
    step: Step<'a>,
    spans: &'a [Span],
    /// `shared.layers` of the batch's chunks.
    joins: BTreeSet<usize>,
    tables: Tables,
    spans_at: usize,
    head_rows_at: usize,
    room: Room,
}

/// Addresses of the step's memory.
#[derive(Debug, Default)]
struct Room {
    x: Address,
    joined: Address,
    normed: Address,
    added: Address,
    qkv: Address,
    z: Address,
    gate_up: Address,
    mlp: Address,
    partial: Address,
    arrived: Address,
    head_in: Address,
    logits: Address,
    parts: Address,
    best: Address,
    touches: Address,
}

/// The greatest of a row of logits, Σ exp(logit − greatest), and its token.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Found {
    logit: f32,
    sum: f32,
    token: u32,
    unused: u32,
}

/// What a product is followed by.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Output {
    Plain,
    Gated,
    Logits,
}

/// What happens to the residual stream between two maps.
#[derive(Debug, Clone, Copy)]
struct Between {
    /// Whether `added` is added, after this norm if any.
    adds: bool,
    post_norm: Address,
    /// Edits of what is added, of the sum, and of what the next layer reads.
    points: [Option<HookPoint>; 3],
    /// Layers after which chunks may join.
    join: Option<usize>,
    norm: Address,
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
    fn begin_part(&mut self, hook: &dyn Hook, joined: Option<usize>) -> Result<()> {
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
            tables.ask(hook, point, &self.decoder.gpu)?;
        }
        self.spans_at = tables.push(self.spans);
        let mut rows = self.batch.logit_rows();
        rows.extend(self.batch.best_rows());
        self.head_rows_at = tables.push(&rows);
        let decoder = &mut *self.decoder;
        tables.upload(&decoder.gpu, &mut decoder.buffers.tables)?;
        let touches = tables.n_edits() * size_of::<Edited>();
        self.room.touches = decoder.buffers.touches.room(&decoder.gpu, touches)?;
        self.tables = tables;
        Ok(())
    }

    /// Reports what came of the edits since the part's beginning.
    fn end_part(&mut self, hook: &mut dyn Hook) -> Result<()> {
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
        // Not in the tables: they are needed once, and these are already there.
        self.decoder.gpu.write(&ids, self.room.logits)?;
        let width = self.config.d_model;
        let factor = match self.config.scale_embeddings {
            // Rounded to the model's type first, as transformers does.
            true => bf16::from_f32((width as f64).sqrt() as f32).to_f32(),
            false => 1.0,
        };
        let (from, with) = (self.decoder.embedding, self.room.logits);
        self.gather(from, with, self.room.x, ids.len(), factor)
    }

    fn gather(
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
        d.gpu.launch(&d.kernels.attention, (blocks, 256), attention)
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

    /// `x · Wᵀ + b` and what follows it, for `[rows, inner, m]`.
    fn product(
        &self,
        output: Output,
        map: &Map,
        x: Address,
        out: Address,
        [rows, inner, m]: [usize; 3],
    ) -> Result<()> {
        let (d, c) = (&*self.decoder, self.config);
        let cap = match output {
            Output::Logits => c.final_softcap.unwrap_or(0.0) as f32,
            Output::Plain | Output::Gated => 0.0,
        };
        if m <= FEW_ROWS {
            let [few, more] = match output {
                Output::Plain => &d.kernels.plain,
                Output::Gated => &d.kernels.gated,
                Output::Logits => &d.kernels.logits,
            };
            let product = Product {
                weights: map.weights,
                bias: map.bias,
                x,
                out,
                rows: rows as u32,
                inner: inner as u32,
                m: m as u32,
                activation: activation(c),
                cap,
                unused: 0,
            };
            let kernel = if m <= FEW_ROWS / 2 { few } else { more };
            let blocks = (rows.div_ceil(16) as u32, 1, 1);
            return d.gpu.launch(kernel, (blocks, 256), product);
        }
        let (matrix_rows, to) = match output {
            Output::Gated => (2 * rows, self.room.gate_up),
            Output::Plain | Output::Logits => (rows, out),
        };
        let is_logits = output == Output::Logits;
        d.gpu
            .product([map.weights, x, to], [matrix_rows, inner, m], is_logits)?;
        let simple = Simple {
            from: to,
            with: map.bias,
            out: to,
            width: matrix_rows as u32,
            kind: activation(c),
            factor: cap,
            n: 0,
        };
        let m = m as u32;
        let by_row = |kernel: &Kernel, simple| d.gpu.launch(kernel, ((m, 1, 1), 256), simple);
        if map.bias != 0 {
            by_row(&d.kernels.add_bias, simple)?;
        }
        if output == Output::Gated {
            let width = rows as u32;
            by_row(
                &d.kernels.gate,
                Simple {
                    out,
                    width,
                    ..simple
                },
            )?;
        }
        if cap > 0.0 {
            d.gpu
                .launch(&d.kernels.cap_logits, ((64, m, 1), 256), simple)?;
        }
        Ok(())
    }

    /// One launch, unless the hook has to see activations, or chunks join.
    fn between(&mut self, hook: &mut dyn Hook, between: &Between) -> Result<()> {
        let work = between.points.map(|point| self.work(point));
        let joins = between.join.filter(|layers| self.joins.contains(layers));
        let width = self.config.d_model;
        let whole = Boundary {
            x: self.room.x,
            ..self.boundary(width)
        };
        let norm = Boundary {
            norm: between.norm,
            normed: self.room.normed,
            ..whole
        };
        let added = Boundary {
            added: self.room.added,
            post_norm: between.post_norm,
            edits_of_added: self.edits(work[0]),
            ..whole
        };
        if joins.is_none() && !work.contains(&Work::Hook) {
            let start = if between.adds { added } else { whole };
            return self.launch_boundary(Boundary {
                edits_of_sum: self.edits(work[1]),
                edits_of_next: self.edits(work[2]),
                norm: between.norm,
                normed: self.room.normed,
                ..start
            });
        }
        if between.adds {
            self.launch_boundary(Boundary {
                only_added: 1,
                ..added
            })?;
            self.see(hook, between.points[0], self.room.added, width)?;
            let added = self.room.added;
            self.launch_boundary(Boundary { added, ..whole })?;
        }
        if let Some(layers) = joins {
            self.join(hook, layers)?;
        }
        for point in between.points[1..].iter().copied().flatten() {
            self.edit(hook, point, self.room.x, width)?;
        }
        let x = self.room.x;
        self.launch_boundary(Boundary { x, ..norm })
    }

    /// Gives chunks that share so many layers their rows.
    fn join(&mut self, hook: &mut dyn Hook, layers: usize) -> Result<()> {
        self.end_part(hook)?;
        let Some(rows) = self.step.join(layers) else {
            return Ok(());
        };
        self.begin_part(hook, Some(layers))?;
        self.decoder.gpu.write(&rows, self.room.logits)?;
        let (from, to) = (self.room.x, self.room.joined);
        self.gather(from, self.room.logits, to, rows.len(), 1.0)?;
        std::mem::swap(&mut self.room.x, &mut self.room.joined);
        Ok(())
    }

    /// What is to be done at a hook point, to rows that nothing else is done to.
    fn edit(&self, hook: &mut dyn Hook, point: HookPoint, x: Address, width: usize) -> Result<()> {
        match self.work(Some(point)) {
            Work::Nothing => Ok(()),
            Work::Hook => self.see(hook, Some(point), x, width),
            work @ Work::Edits(_) => self.launch_boundary(Boundary {
                x,
                edits_of_sum: self.edits(work),
                ..self.boundary(width)
            }),
        }
    }

    /// Lets the hook have activations, if that is what it needs: from the device and
    /// back.
    fn see(
        &self,
        hook: &mut dyn Hook,
        point: Option<HookPoint>,
        x: Address,
        width: usize,
    ) -> Result<()> {
        let Some(point) = point.filter(|&point| self.tables.work(point) == Work::Hook) else {
            return Ok(());
        };
        let mut values = vec![bf16::ZERO; self.tables.n_rows * width];
        self.decoder.gpu.read(x, &mut values)?;
        let rows = Tensor::from_vec(values, (self.tables.n_rows, width), &Device::Cpu)?;
        let rows = rows.to_dtype(DType::F32)?;
        let Some(edited) = hook.apply(point, &rows, &self.tables.active)? else {
            return Ok(());
        };
        let edited: Vec<bf16> = edited.to_dtype(DType::BF16)?.flatten_all()?.to_vec1()?;
        self.decoder.gpu.write(&edited, x)
    }

    fn work(&self, point: Option<HookPoint>) -> Work {
        point.map_or(Work::Nothing, |point| self.tables.work(point))
    }

    fn edits(&self, work: Work) -> Address {
        match work {
            Work::Edits(at) => self.tables.at(at),
            Work::Nothing | Work::Hook => 0,
        }
    }

    fn boundary(&self, width: usize) -> Boundary {
        Boundary {
            edits: self.tables.edits(),
            touches: self.room.touches,
            width: width as u32,
            eps: self.config.norm_eps as f32,
            scale_in_float: u32::from(self.config.norm_weight_offset),
            ..Boundary::default()
        }
    }

    fn launch_boundary(&self, boundary: Boundary) -> Result<()> {
        let threads = (boundary.width / 8).next_multiple_of(32);
        let shape = ((self.tables.n_rows as u32, 1, 1), threads);
        let d = &*self.decoder;
        d.gpu.launch(&d.kernels.boundary, shape, boundary)
    }

    /// Logits of the rows that ask for them, and the most likely tokens of those
    /// that ask for no more.
    fn score(&mut self, scores: &mut Scores) -> Result<()> {
        let (n_logits, n_best) = (self.batch.logit_rows().len(), self.batch.best_rows().len());
        let (n, vocabulary) = (n_logits + n_best, self.config.vocab_size);
        scores.logits.clear();
        scores.best.clear();
        if n == 0 {
            return Ok(());
        }
        let rows = self.tables.at(self.head_rows_at);
        self.gather(self.room.normed, rows, self.room.head_in, n, 1.0)?;
        let head = Map::without_bias(self.decoder.head);
        let shape = [vocabulary, self.config.d_model, n];
        self.product(
            Output::Logits,
            &head,
            self.room.head_in,
            self.room.logits,
            shape,
        )?;
        if n_best > 0 {
            let first = (n_logits * vocabulary * size_of::<f32>()) as u64;
            self.best(self.room.logits + first, n_best)?;
            let mut found = vec![Found::default(); n_best];
            self.decoder.gpu.read(self.room.best, &mut found)?;
            scores.best.extend(found.iter().map(|found| Best {
                token_id: found.token,
                logprob: -found.sum.ln(),
            }));
        }
        scores.logits.resize(n_logits * vocabulary, 0.0);
        self.decoder.gpu.read(self.room.logits, &mut scores.logits)
    }

    fn best(&self, logits: Address, n: usize) -> Result<()> {
        let d = &*self.decoder;
        let parts = Simple {
            from: logits,
            out: self.room.parts,
            width: self.config.vocab_size as u32,
            ..Simple::default()
        };
        let shape = ((BEST_PARTS as u32, n as u32, 1), 256);
        d.gpu.launch(&d.kernels.best_of_parts, shape, parts)?;
        let best = Simple {
            from: self.room.parts,
            out: self.room.best,
            n: BEST_PARTS as u32,
            ..Simple::default()
        };
        d.gpu.launch(&d.kernels.best, ((n as u32, 1, 1), 32), best)
    }
}

/// Blocks of attention for a row: two query heads each.
fn attention_blocks(c: &ModelConfig) -> usize {
    c.n_kv_heads * (c.n_heads / c.n_kv_heads).div_ceil(2)
}

impl Room {
    fn new(decoder: &mut GpuDecoder, c: &ModelConfig, batch: &Batch) -> Result<Self> {
        let (gpu, b) = (&decoder.gpu, &mut decoder.buffers);
        let n = batch.n_tokens();
        let scored = batch.logit_rows().len() + batch.best_rows().len();
        let qkv = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
        let split_rows = n.min(SPLIT_ROWS);
        let partial = split_rows * c.n_heads * MOST_SPLITS * (c.head_dim + 2) * size_of::<f32>();
        let row = size_of::<bf16>();
        // Ids of tokens and rows pass through the logits' room.
        let logits = (scored * c.vocab_size).max(n) * size_of::<f32>();
        let gate_up = if n > FEW_ROWS {
            2 * n * c.d_mlp * row
        } else {
            0
        };
        Ok(Self {
            x: b.x.room(gpu, n * c.d_model * row)?,
            joined: b.joined.room(gpu, n * c.d_model * row)?,
            normed: b.normed.room(gpu, n * c.d_model * row)?,
            added: b.added.room(gpu, n * c.d_model * row)?,
            qkv: b.qkv.room(gpu, n * qkv * row)?,
            z: b.z.room(gpu, n * c.z_width() * row)?,
            gate_up: b.gate_up.room(gpu, gate_up)?,
            mlp: b.mlp.room(gpu, n * c.d_mlp * row)?,
            partial: b.partial.room(gpu, partial)?,
            arrived: b
                .arrived
                .cleared(gpu, SPLIT_ROWS * attention_blocks(c) * size_of::<u32>())?,
            head_in: b.head_in.room(gpu, scored * c.d_model * row)?,
            logits: b.logits.room(gpu, logits)?,
            parts: b
                .parts
                .room(gpu, scored * BEST_PARTS * size_of::<Found>())?,
            best: b.best.room(gpu, scored * size_of::<Found>())?,
            touches: 0,
        })
    }
}
