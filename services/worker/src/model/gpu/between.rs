//! Between two maps: residual sums, edits and norms, and what the hook sees.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use steering_proto::HookPoint;

use super::{launch::Address, parameters::Boundary, pass::Pass, tables::Work};
use crate::model::Hook;

/// What happens to the residual stream between two maps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Between {
    /// Whether `added` is added, after this norm if any.
    pub(super) adds: bool,
    pub(super) post_norm: Address,
    /// Edits of what is added, of the sum, and of what the next layer reads.
    pub(super) points: [Option<HookPoint>; 3],
    /// Layers after which chunks may join.
    pub(super) join: Option<usize>,
    pub(super) norm: Address,
}

impl Pass<'_> {
    /// One launch, unless the hook has to see activations, or chunks join.
    pub(super) fn between(&mut self, hook: &mut dyn Hook, between: &Between) -> Result<()> {
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
            candle_core::bail!("no chunk joins after {layers} layers");
        };
        self.begin_part(hook, Some(layers))?;
        self.decoder.gpu.write(&rows, self.room.ids)?;
        let (from, to) = (self.room.x, self.room.joined);
        self.gather(from, self.room.ids, to, rows.len(), 1.0)?;
        std::mem::swap(&mut self.room.x, &mut self.room.joined);
        Ok(())
    }

    /// What is to be done at a hook point, to rows that nothing else is done to.
    pub(super) fn edit(
        &self,
        hook: &mut dyn Hook,
        point: HookPoint,
        x: Address,
        width: usize,
    ) -> Result<()> {
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
        if edited.dims() != rows.dims() {
            candle_core::bail!("the hook made {:?} of {:?}", edited.dims(), rows.dims());
        }
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
}
