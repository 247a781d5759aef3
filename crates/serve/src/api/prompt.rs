//! Text with pictures in it.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A piece of a prompt.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Part {
    /// Text; `<|endofchunk|>` ends a demonstration.
    Text {
        /// It may not hold `<image>`.
        text: String,
    },
    /// A picture.
    ImageUrl {
        /// Where it is.
        image_url: ImageUrl,
    },
}

/// Where a picture is.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageUrl {
    /// `data:image/png;base64,…`, or an address at a host that the server allows.
    pub(crate) url: String,
    /// Taken for the sake of clients that send it; pictures are always seen in the model's size.
    #[serde(default)]
    #[expect(dead_code, reason = "it changes nothing")]
    pub(crate) detail: Option<Detail>,
}

/// How closely OpenAI's models look.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Detail {
    /// As the model does.
    Auto,
    /// The same.
    Low,
    /// The same.
    High,
}

/// A prompt: a text, or parts of text and pictures.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, try_from = "Value")]
pub(crate) enum Content {
    /// Text alone.
    Text(String),
    /// Text and pictures.
    Parts(Vec<Part>),
}

impl Content {
    pub(crate) fn into_parts(self) -> Vec<Part> {
        match self {
            Self::Text(text) => vec![Part::Text { text }],
            Self::Parts(parts) => parts,
        }
    }
}

/// By hand, so that what is wrong with a part is said.
impl TryFrom<Value> for Content {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            parts @ Value::Array(_) => serde_json::from_value(parts).map(Self::Parts).map_err(|e| e.to_string()),
            _ => Err("neither a string nor a list of parts".into()),
        }
    }
}

/// What is to be continued: one prompt, or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, try_from = "Value")]
pub(crate) enum Prompts {
    /// A text.
    Text(String),
    /// Several texts, each continued by itself.
    Texts(Vec<String>),
    /// One prompt of text and pictures.
    Parts(Vec<Part>),
}

impl Prompts {
    pub(crate) fn into_each(self) -> Vec<Vec<Part>> {
        match self {
            Self::Text(text) => vec![vec![Part::Text { text }]],
            Self::Texts(texts) => texts.into_iter().map(|text| vec![Part::Text { text }]).collect(),
            Self::Parts(parts) => vec![parts],
        }
    }
}

impl TryFrom<Value> for Prompts {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) if items.first().is_some_and(Value::is_string) => {
                serde_json::from_value(items.into()).map(Self::Texts).map_err(|e| e.to_string())
            }
            parts @ Value::Array(_) => serde_json::from_value(parts).map(Self::Parts).map_err(|e| e.to_string()),
            _ => Err("a prompt is a string, a list of strings or a list of parts".into()),
        }
    }
}
