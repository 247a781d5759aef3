//! From the messages of a chat to a few-shot prompt.

use std::fmt;
use std::sync::Arc;

use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::ServeError;

/// Answers are demonstrations; the last message is to be continued. A question of pictures alone asks for a caption.
pub const DEFAULT: &str = include_str!("template.jinja");

/// A Jinja template that writes a prompt, with `<image>` for each picture, from `messages` and `caption_prompt`.
#[derive(Clone)]
pub struct Template(Arc<Environment<'static>>);

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

/// A message as templates see it.
#[derive(Debug, Serialize)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    /// The text, with `<image>` where a picture is.
    pub(crate) content: String,
    /// The text without its pictures.
    pub(crate) text: String,
    /// How many pictures it has.
    pub(crate) images: usize,
}

#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Message],
    caption_prompt: &'a str,
}

/// Work that a template may do: more than any that ends needs.
const FUEL: u64 = 10_000_000;

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`ServeError::Template`] if it is none.
    pub fn new(source: &str) -> Result<Self, ServeError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        // "A picture of a cat", but "Output:red": as the prompts of training are written.
        environment.add_filter("spaced", |text: String, before: String| {
            let joined = text.is_empty() || text.starts_with(char::is_whitespace);
            let ready = before.is_empty() || before.ends_with([':', '>']) || before.ends_with(char::is_whitespace);
            if joined || ready { text } else { format!(" {text}") }
        });
        environment.add_template_owned("chat", source.to_string()).map_err(|e| ServeError::Template(e.to_string()))?;
        Ok(Self(Arc::new(environment)))
    }

    /// The prompt of some messages.
    pub(crate) fn render(&self, messages: &[Message], caption_prompt: &str) -> Result<String, String> {
        let template = self.0.get_template("chat").map_err(|e| e.to_string())?;
        template.render(Context { messages, caption_prompt }).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &'static str, content: &str) -> Message {
        let images = content.matches("<image>").count();
        Message { role, content: content.into(), text: content.replace("<image>", ""), images }
    }

    fn written(messages: &[(&'static str, &str)]) -> String {
        let messages: Vec<Message> = messages.iter().map(|(role, content)| message(role, content)).collect();
        Template::new(DEFAULT).expect("a template").render(&messages, "A picture of").expect("a prompt")
    }

    #[test]
    fn answers_are_demonstrations() {
        let chat = [
            ("user", "<image>Output:"),
            ("assistant", "red"),
            ("user", "<image>A picture of"),
            ("assistant", "a crab"),
            ("user", "<image>Output:"),
        ];
        let prompt = "<image>Output:red<|endofchunk|><image>A picture of a crab<|endofchunk|><image>Output:";
        assert_eq!(written(&chat), prompt);
    }

    #[test]
    fn a_picture_alone_is_to_be_named() {
        assert_eq!(written(&[("user", "<image>")]), "<image>A picture of");
        let shown = [("user", "<image>"), ("assistant", "a crab"), ("user", "<image>")];
        assert_eq!(written(&shown), "<image>A picture of a crab<|endofchunk|><image>A picture of");
    }

    #[test]
    fn other_messages_are_text() {
        assert_eq!(written(&[("system", "Drawings."), ("user", "<image>What?")]), "Drawings.<image>What?");
        // An answer that was begun is continued.
        assert_eq!(written(&[("user", "<image>A picture of"), ("assistant", "a")]), "<image>A picture of a");
    }

    #[test]
    fn endless_templates_end() {
        let template = Template::new("{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}");
        assert!(template.expect("a template").render(&[], "").is_err());
        assert!(Template::new("{% for %}").is_err());
    }
}
