//! The notebook's `.pt`: `{"cavs": tensor[n, width], "labels": [str]}`.

use std::{path::Path, sync::Arc};

use super::CavFile;
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
    let labels = labels
        .ok_or_else(|| malformed("has no \"labels\""))?
        .iter()
        .map(|&id| match file.pickle.node(id) {
            Node::Text(label) => Ok(label.clone()),
            other => Err(malformed(format!(
                "\"labels\" holds {other:?}, which is not text"
            ))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let tensor = file.tensor("cavs", cavs, scratch, &mut |_| Ok(()))?;
    let [_, width] = tensor.shape_2d()?;
    CavFile::from_rows(&tensor.values()?, width, labels)
}
