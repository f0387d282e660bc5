//! What was said, and for how long it is kept.
//!
//! Owns: conversation, message.
//! May use: domain, tenancy.
//! Never: begins or commits a transaction; calls a model; knows HTTP.
//! Start at: `messages::append`.

pub mod conversations;
pub mod messages;

pub use conversations::{Conversation, ConversationError, ConversationFilter, ConversationPatch, NewConversation};
pub use messages::{Message, MessageError, NewMessage};
