//! The three forms of a prompt.

use crate::v1;

/// Text without the chat template; the tokenizer adds its special tokens.
pub fn text(text: impl Into<String>) -> v1::Prompt {
    v1::Prompt {
        content: Some(v1::prompt::Content::Text(text.into())),
    }
}

/// One user message, without the opening of an assistant turn.
pub fn user(content: impl Into<String>) -> v1::Prompt {
    chat(vec![message("user", content)], false)
}

/// A conversation for the model's chat template.
pub fn chat(messages: Vec<v1::ChatMessage>, add_generation_prompt: bool) -> v1::Prompt {
    let chat = v1::Chat {
        messages,
        add_generation_prompt,
    };
    v1::Prompt {
        content: Some(v1::prompt::Content::Chat(chat)),
    }
}

/// One message of a conversation.
pub fn message(role: &str, content: impl Into<String>) -> v1::ChatMessage {
    v1::ChatMessage {
        role: role.to_owned(),
        content: content.into(),
    }
}

/// Token ids as they are.
pub fn token_ids(ids: Vec<u32>) -> v1::Prompt {
    v1::Prompt {
        content: Some(v1::prompt::Content::TokenIds(v1::TokenIds { ids })),
    }
}
