//! Files of `torch.save`: a zip archive with a pickle and one entry per storage.

use std::{path::Path, sync::Arc};

use super::{
    FormatError, SourceFile, malformed,
    pickle::{Pickle, StorageType, TensorNode},
    tensor::{Dtype, Order, Tensor},
    zip::Zip,
};

/// The pickle holds names and shapes only, never numbers.
const PICKLE_LEN_MAX: u64 = 64 << 20;

/// An open file of `torch.save`.
#[derive(Debug)]
pub struct TorchFile {
    zip: Zip,
    prefix: String,
    /// The object that was saved; its tensors are described, not read.
    pub pickle: Pickle,
}

impl TorchFile {
    /// Reads the archive's directory and its pickle.
    pub fn open(source: Arc<SourceFile>, scratch: &Path) -> Result<Self, FormatError> {
        let mut magic = [0; 4];
        source.read_at(&mut magic, 0)?;
        if !magic.starts_with(b"PK") {
            return Err(malformed(if magic[0] == 0x80 {
                "is in torch's format from before version 1.6; load it with torch and save it again"
            } else {
                "is not a file of torch.save"
            }));
        }
        let zip = Zip::open(source)?;
        let prefix = zip
            .names()
            .find_map(|name| name.strip_suffix("data.pkl"))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
            .ok_or_else(|| {
                malformed("is a zip archive without data.pkl: not a file of torch.save")
            })?
            .to_owned();
        let mut file = Self {
            zip,
            prefix,
            pickle: Pickle::parse(b"N.")?,
        };
        if let Some(order) = file.text("byteorder", scratch)?
            && order.trim() != "little"
        {
            return Err(malformed(format!(
                "has byte order {order:?}; little-endian is read"
            )));
        }
        let pickle = file.bytes("data.pkl", PICKLE_LEN_MAX, scratch)?;
        file.pickle = Pickle::parse(&pickle).map_err(|error| error.within("data.pkl"))?;
        Ok(file)
    }

    /// The place of a tensor's numbers. Strides are read if one axis of the
    /// tensor is contiguous. `progress` as in [`Zip::data`].
    pub fn tensor(
        &self,
        name: &str,
        node: &TensorNode,
        scratch: &Path,
        progress: &mut dyn FnMut(u64) -> Result<(), FormatError>,
    ) -> Result<Tensor, FormatError> {
        let dtype = match node.storage.dtype {
            StorageType::F16 => Dtype::F16,
            StorageType::Bf16 => Dtype::Bf16,
            StorageType::F32 => Dtype::F32,
            StorageType::F64 => Dtype::F64,
            StorageType::I32 => Dtype::I32,
            StorageType::I64 => Dtype::I64,
        };
        let (order, run_stride) = runs(&node.shape, &node.strides).ok_or_else(|| {
            malformed(format!(
                "{name} has shape {:?} and strides {:?}; one axis must be contiguous",
                node.shape, node.strides
            ))
        })?;
        if last_element(node).is_none_or(|last| last >= node.storage.len) {
            return Err(malformed(format!(
                "{name} of shape {:?} does not fit its storage of {} elements",
                node.shape, node.storage.len
            )));
        }
        let entry = format!("{}data/{}", self.prefix, node.storage.key);
        let data = self.zip.data(&entry, scratch, progress)?;
        if node.storage.len.checked_mul(dtype.size() as u64) != Some(data.len) {
            return Err(malformed(format!(
                "{name}: its storage declares {} elements and has {} bytes",
                node.storage.len, data.len
            )));
        }
        let offset = data.offset + node.offset * dtype.size() as u64;
        let tensor = Tensor::new(data.source, name, offset, dtype, &node.shape, order)?;
        match run_stride {
            None => Ok(tensor),
            Some(stride) => tensor.with_run_stride(stride),
        }
    }

    fn text(&self, entry: &str, scratch: &Path) -> Result<Option<String>, FormatError> {
        if self
            .zip
            .len_of(&format!("{}{entry}", self.prefix))
            .is_none()
        {
            return Ok(None);
        }
        let bytes = self.bytes(entry, 64, scratch)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn bytes(&self, entry: &str, len_max: u64, scratch: &Path) -> Result<Vec<u8>, FormatError> {
        let name = format!("{}{entry}", self.prefix);
        match self.zip.len_of(&name) {
            Some(len) if len <= len_max => {
                let data = self.zip.data(&name, scratch, &mut |_| Ok(()))?;
                data.source.read_vec(data.offset, data.len)
            }
            Some(len) => Err(malformed(format!(
                "{entry} has {len} bytes, at most {len_max} are read"
            ))),
            None => Err(malformed(format!("has no {entry}"))),
        }
    }
}

/// How a tensor with these strides lies in memory: its order, and for a matrix
/// the distance between its rows (or columns).
fn runs(shape: &[u64], strides: &[u64]) -> Option<(Order, Option<u64>)> {
    // The stride of an axis with one element says nothing.
    let contiguous = |axis: usize| strides[axis] == 1 || shape[axis] == 1;
    match *shape {
        [] => Some((Order::RowMajor, None)),
        [_] => contiguous(0).then_some((Order::RowMajor, None)),
        [_, columns] if contiguous(1) && (shape[0] == 1 || strides[0] >= columns) => Some((
            Order::RowMajor,
            Some(if shape[0] == 1 { columns } else { strides[0] }),
        )),
        [rows, _] if contiguous(0) && (shape[1] == 1 || strides[1] >= rows) => Some((
            Order::ColumnMajor,
            Some(if shape[1] == 1 { rows } else { strides[1] }),
        )),
        _ => None,
    }
}

/// Position of a tensor's last element in its storage; None for an empty or endless tensor.
fn last_element(node: &TensorNode) -> Option<u64> {
    node.shape
        .iter()
        .zip(&node.strides)
        .try_fold(node.offset, |last, (&axis, &stride)| {
            last.checked_add(axis.checked_sub(1)?.checked_mul(stride)?)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_decide_the_order() {
        use Order::{ColumnMajor, RowMajor};
        assert_eq!(runs(&[2, 3], &[3, 1]), Some((RowMajor, Some(3))));
        assert_eq!(runs(&[2, 3], &[7, 1]), Some((RowMajor, Some(7))));
        assert_eq!(runs(&[2, 3], &[1, 2]), Some((ColumnMajor, Some(2))));
        assert_eq!(runs(&[1, 3], &[7, 1]), Some((RowMajor, Some(3))));
        assert_eq!(runs(&[3, 1], &[1, 1]), Some((RowMajor, Some(1))));
        assert_eq!(runs(&[], &[]), Some((RowMajor, None)));
        assert_eq!(runs(&[2, 3], &[6, 2]), None);
        assert_eq!(runs(&[2, 3], &[0, 1]), None);
        assert_eq!(runs(&[4], &[2]), None);
    }
}
