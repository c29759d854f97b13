//! Products with the weights.

use candle_core::Result;

use super::{
    FEW_ROWS, activation,
    launch::{Address, Kernel},
    parameters::{Product, Simple},
    pass::Pass,
    weights::Map,
};

/// What a product is followed by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Output {
    Plain,
    Gated,
    Logits,
}

impl Pass<'_> {
    /// `x · Wᵀ + b` and what follows it, for `[rows, inner, m]`.
    pub(super) fn product(
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
            let per_block = if output == Output::Gated { 8 } else { 16 };
            let blocks = (rows.div_ceil(per_block) as u32, 1, 1);
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
}
