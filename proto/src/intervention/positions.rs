//! Which tokens an edit applies to.

use crate::{Invalid, v1};

/// Tokens an edit applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Part of the sequence.
    pub scope: Scope,
    /// First position inside.
    pub start: u32,
    /// First position outside; none = to the end.
    pub end: Option<u32>,
    /// Leave special tokens alone.
    pub skip_special_tokens: bool,
    /// Only these tokens; empty = any. Sorted, distinct.
    pub token_ids: Vec<u32>,
}

/// Part of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Prompt and generated tokens.
    All,
    /// Prompt tokens.
    Prompt,
    /// Generated tokens.
    Generated,
}

impl Positions {
    /// Every token, as the notebook does it.
    pub const fn all() -> Self {
        Self {
            scope: Scope::All,
            start: 0,
            end: None,
            skip_special_tokens: false,
            token_ids: Vec::new(),
        }
    }

    /// Whether the edit applies to a token.
    pub fn contains(&self, token: Token) -> bool {
        let in_scope = match self.scope {
            Scope::All => true,
            Scope::Prompt => !token.generated,
            Scope::Generated => token.generated,
        };
        in_scope
            && token.position >= self.start
            && self.end.is_none_or(|end| token.position < end)
            && !(self.skip_special_tokens && token.special)
            && (self.token_ids.is_empty() || self.token_ids.binary_search(&token.id).is_ok())
    }

    /// Whether no token can be in both: needed to allow two edits of one feature.
    pub fn disjoint(&self, other: &Self) -> bool {
        let scopes_differ = matches!(
            (self.scope, other.scope),
            (Scope::Prompt, Scope::Generated) | (Scope::Generated, Scope::Prompt)
        );
        let before = |a: &Self, b: &Self| a.end.is_some_and(|end| end <= b.start);
        let tokens_differ = !self.token_ids.is_empty()
            && !other.token_ids.is_empty()
            && self
                .token_ids
                .iter()
                .all(|id| other.token_ids.binary_search(id).is_err());
        scopes_differ || before(self, other) || before(other, self) || tokens_differ
    }
}

/// A token as [`Positions`] see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its position; 0 is the first prompt token.
    pub position: u32,
    /// Whether the model wrote it.
    pub generated: bool,
    /// Whether it is a special token.
    pub special: bool,
}

impl TryFrom<v1::Positions> for Positions {
    type Error = Invalid;

    fn try_from(wire: v1::Positions) -> Result<Self, Invalid> {
        let v1::Positions {
            scope,
            window,
            skip_special_tokens,
            mut token_ids,
        } = wire;
        let scope = match v1::PositionScope::try_from(scope) {
            Ok(v1::PositionScope::All) => Scope::All,
            Ok(v1::PositionScope::Prompt) => Scope::Prompt,
            Ok(v1::PositionScope::Generated) => Scope::Generated,
            Ok(v1::PositionScope::Unspecified) | Err(_) => {
                return Err(Invalid::field(
                    "scope",
                    format!("is {scope}; must be ALL, PROMPT or GENERATED"),
                ));
            }
        };
        let (start, end) = match window {
            None => (0, None),
            Some(v1::PositionWindow { start, end }) => (start, end),
        };
        if end.is_some_and(|end| end <= start) {
            return Err(Invalid::field(
                "window.end",
                format!("must be above start {start}: the window is half-open and not empty"),
            ));
        }
        token_ids.sort_unstable();
        token_ids.dedup();
        Ok(Self {
            scope,
            start,
            end,
            skip_special_tokens,
            token_ids,
        })
    }
}
