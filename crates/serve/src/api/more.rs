//! Scores, features, where text looked, and the model itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::prompt::{Content, ImageUrl};
use super::{Details, Usage};

/// Candidates to be compared.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreRequest {
    /// The server's model; may be left out.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// What the candidates continue.
    pub(crate) prompt: Content,
    /// Texts, as they would follow the prompt: " cat" after "A picture of a".
    #[schema(min_items = 1, max_items = 1024)]
    pub(crate) candidates: Vec<String>,
}

/// How likely each candidate is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ScoreResponse {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) model: String,
    /// As asked for.
    pub(crate) data: Vec<Score>,
    pub(crate) usage: Usage,
    pub(crate) flamingo: Details,
}

/// How likely a candidate is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Score {
    pub(crate) index: usize,
    pub(crate) candidate: String,
    /// Log-probability of all its tokens.
    pub(crate) log_prob: f64,
    /// The mean of its tokens: what OpenFlamingo's evaluation compares.
    pub(crate) mean_log_prob: f64,
    pub(crate) tokens: usize,
    /// Its share of the candidates' probability.
    pub(crate) probability: f64,
}

/// Pictures whose features are asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingRequest {
    /// The server's model; may be left out.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// A picture or several, each as an address (`data:image/png;base64,…`) or an image_url.
    pub(crate) input: Pictures,
    /// `float` or `base64` (32-bit floats, little-endian).
    #[serde(default)]
    pub(crate) encoding_format: EncodingFormat,
    /// Taken, and not looked at.
    #[serde(default)]
    #[expect(dead_code, reason = "for clients that send it")]
    pub(crate) user: Option<String>,
}

/// Pictures.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, try_from = "Value")]
pub(crate) enum Pictures {
    /// One address.
    One(String),
    /// Several.
    Several(Vec<PictureInput>),
}

/// A picture by its address.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, try_from = "Value")]
pub(crate) enum PictureInput {
    /// The address.
    Url(String),
    /// As in prompts.
    Part(PicturePart),
}

/// A part of a prompt that is a picture.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum PicturePart {
    /// A picture.
    ImageUrl {
        /// Where it is.
        image_url: ImageUrl,
    },
}

impl Pictures {
    pub(crate) fn into_urls(self) -> Vec<String> {
        match self {
            Self::One(url) => vec![url],
            Self::Several(inputs) => inputs
                .into_iter()
                .map(|input| match input {
                    PictureInput::Url(url)
                    | PictureInput::Part(PicturePart::ImageUrl { image_url: ImageUrl { url, .. } }) => url,
                })
                .collect(),
        }
    }
}

impl TryFrom<Value> for Pictures {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(url) => Ok(Self::One(url)),
            Value::Array(inputs) => {
                inputs.into_iter().map(PictureInput::try_from).collect::<Result<_, _>>().map(Self::Several)
            }
            _ => Err("pictures are an address or a list of addresses".into()),
        }
    }
}

impl TryFrom<Value> for PictureInput {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(url) => Ok(Self::Url(url)),
            part => serde_json::from_value(part).map(Self::Part).map_err(|e| e.to_string()),
        }
    }
}

/// How features are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// Numbers.
    #[default]
    Float,
    /// Base64 of 32-bit floats, little-endian.
    Base64,
}

/// Features of pictures.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingResponse {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) model: String,
    pub(crate) data: Vec<Embedding>,
    pub(crate) usage: EmbeddingUsage,
}

/// The features of a picture, of length 1.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// `embedding`.
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Features,
}

/// Features in the form that was asked for.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Features {
    /// Numbers.
    Numbers(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// Pictures have no tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// A text whose looks are asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttentionRequest {
    /// The server's model; may be left out.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// A prompt with pictures.
    pub(crate) prompt: Content,
    /// What follows it, as the model wrote it or otherwise.
    #[serde(default)]
    pub(crate) completion: String,
}

/// Where a text looked.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct AttentionResponse {
    /// `attention`.
    pub(crate) object: &'static str,
    pub(crate) model: String,
    /// Patches of a picture's centre square: rows and columns.
    pub(crate) grid: [usize; 2],
    pub(crate) tokens: Vec<LookingToken>,
}

/// A token, and where it looked.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct LookingToken {
    pub(crate) text: String,
    /// The picture that it stands for, if it is `<image>`.
    pub(crate) image: Option<usize>,
    /// Whether it is the completion's.
    pub(crate) completion: bool,
    /// The pictures that it saw.
    pub(crate) looks: Vec<Look>,
}

/// How a token looked at a picture.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Look {
    pub(crate) image: usize,
    /// The share of its attention that each patch got, row by row.
    pub(crate) map: Vec<f32>,
}

/// The models of this server: one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<ModelInfo>,
}

/// The model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ModelInfo {
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// Seconds since 1970; when the server was started.
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    pub(crate) flamingo: ModelDetails,
}

/// What the model is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ModelDetails {
    pub(crate) device: String,
    pub(crate) precision: String,
    pub(crate) parameters: u64,
    /// Side of the square that pictures are resized to.
    pub(crate) image_size: usize,
    /// Patches of a picture: rows and columns.
    pub(crate) grid: [usize; 2],
    /// What stands between a picture and its caption.
    pub(crate) caption_prompt: String,
    /// Tokens of a prompt and its continuation together.
    pub(crate) max_tokens: usize,
    /// Pictures of a prompt.
    pub(crate) max_images: usize,
}
