//! Reading a configuration so that no field goes unnoticed.

use serde_json::{Map, Value};

/// A configuration that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field is missing, malformed or unsupported.
    #[error("model configuration: {field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// Not JSON.
    #[error("config.json is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl ConfigError {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// The fields of a JSON object, each taken out when it is read.
pub(super) struct Fields {
    name: String,
    fields: Map<String, Value>,
}

impl Fields {
    pub(super) fn parse(name: &str, json: &str) -> Result<Self, ConfigError> {
        Self::new(name, serde_json::from_str(json)?)
    }

    pub(super) fn new(name: &str, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(fields) => Ok(Self {
                name: name.to_owned(),
                fields,
            }),
            _ => Err(ConfigError::invalid(name, "must be a JSON object")),
        }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// A field's value; `null` counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &mut self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => convert(&value).map(Some).ok_or_else(|| {
                ConfigError::invalid(self.path(key), format!("is {value}; must be {expected}"))
            }),
        }
    }

    fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::invalid(self.path(key), "is required"))
    }

    pub(super) fn size(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number", |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    pub(super) fn required_size(&mut self, key: &str) -> Result<usize, ConfigError> {
        let value = self.size(key)?;
        self.require(key, value)
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&mut self, key: &str) -> Result<f64, ConfigError> {
        let value = self.number(key)?;
        self.require(key, value)
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        self.typed(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.typed(key, "a list of strings", |v| {
            v.as_array()?
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
        })
    }

    /// One token id or a list of them.
    pub(super) fn token_ids(&mut self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(items) => items.iter().map(id).collect(),
            single => id(single).map(|n| vec![n]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, ConfigError> {
        let path = self.path(key);
        self.take(key)
            .map(|value| Self::new(&path, value))
            .transpose()
    }

    /// Drops fields that have no effect on inference.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.fields.remove(*key);
        }
    }

    /// Refuses whatever nobody has read. A feature that is switched off
    /// (`false` or `null`) changes nothing, whatever it is.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let unread: Vec<String> = self
            .fields
            .iter()
            .filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)))
            .map(|(key, value)| format!("{} = {value}", self.path(key)))
            .collect();
        if unread.is_empty() {
            return Ok(());
        }
        Err(ConfigError::invalid(
            unread.join(", "),
            "is not known to this version; refusing to serve a model whose configuration is not \
             fully understood",
        ))
    }
}
