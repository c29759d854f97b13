//! The notebook's `.pt`: `{"cavs": tensor[n, width], "labels": [str]}`.

use std::{path::Path, sync::Arc};

use super::{CavFile, NAME_LEN_MAX, check_counts};
use crate::format::{FormatError, SourceFile, malformed, pickle::Node, torch::TorchFile};

pub(super) fn read(source: &Arc<SourceFile>, scratch: &Path) -> Result<CavFile, FormatError> {
    let file = TorchFile::open(Arc::clone(source), scratch)?;
    let mut cavs = None;
    let mut labels = None;
    for (key, node) in file.pickle.root_entries()? {
        match (key, node) {
            ("cavs", Node::Tensor(tensor)) => cavs = Some(tensor),
            ("labels", Node::List(items) | Node::Tuple(items)) => labels = Some(items),
            ("cavs", _) => return Err(malformed("\"cavs\" is not a tensor")),
            ("labels", _) => return Err(malformed("\"labels\" is not a list")),
            (other, _) => {
                return Err(malformed(format!(
                    "holds {other:?}; only \"cavs\" and \"labels\" are known"
                )));
            }
        }
    }
    let cavs = cavs.ok_or_else(|| malformed("has no \"cavs\""))?;
    let labels = labels.ok_or_else(|| malformed("has no \"labels\""))?;
    let tensor = file.tensor("cavs", cavs, scratch, &mut |_| Ok(()))?;
    let [rows, width] = tensor.shape_2d()?;
    // A pickle may name one long text any number of times, so that copies need a bound.
    check_counts(rows, labels.len())?;
    let labels = labels
        .iter()
        .enumerate()
        .map(|(i, &id)| match file.pickle.node(id) {
            Node::Text(label) if label.len() <= NAME_LEN_MAX => Ok(label.clone()),
            Node::Text(label) => Err(malformed(format!(
                "\"labels\"[{i}] has {} bytes; at most {NAME_LEN_MAX} are allowed",
                label.len()
            ))),
            _ => Err(malformed(format!("\"labels\"[{i}] is not text"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    CavFile::from_rows(&tensor.values()?, width, labels)
}
