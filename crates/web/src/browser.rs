//! What JavaScript sees.

use js_sys::{Function, Promise};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

use crate::{Files, Flamingo, Pictures, pictures};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn error(text: &str);
}

/// Has panics told before they end everything: a browser says "unreachable" only.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| error(&panic.to_string())));
}

/// The pictures of a request, in order.
#[wasm_bindgen(js_name = Pictures)]
#[derive(Default)]
pub struct JsPictures(Pictures);

#[wasm_bindgen(js_class = Pictures)]
impl JsPictures {
    /// No picture.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a picture by its file, or says that the browser has to decode it, and adds nothing.
    ///
    /// # Errors
    /// For an unusable file.
    #[wasm_bindgen(js_name = addFile)]
    pub fn add_file(&mut self, file: &[u8]) -> Result<bool, JsError> {
        Ok(self.0.add_file(file)?)
    }

    /// Adds a picture by red, green, blue and opacity of its pixels.
    ///
    /// # Errors
    /// For another number of levels than pixels need.
    #[wasm_bindgen(js_name = addPixels)]
    pub fn add_pixels(&mut self, width: u32, height: u32, levels: Vec<u8>) -> Result<(), JsError> {
        Ok(self.0.add_pixels(width, height, levels)?)
    }

    /// A file as the browser is to decode it: without what would have it turn the picture or change its colours.
    #[wasm_bindgen(js_name = asStored)]
    pub fn as_stored(file: &[u8]) -> Vec<u8> {
        pictures::as_stored(file)
    }
}

/// A model that answers requests.
#[wasm_bindgen(js_name = Flamingo)]
pub struct JsFlamingo(Flamingo);

#[wasm_bindgen(js_class = Flamingo)]
impl JsFlamingo {
    /// Makes a model of the contents of `model.toml`, `model.safetensors`, `tokenizer.json`, and where they are there
    /// `special_tokens_map.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// For files that are damaged or do not fit together.
    #[wasm_bindgen(constructor)]
    pub fn new(
        config: String,
        tensors: Vec<u8>,
        tokenizer: Vec<u8>,
        special_tokens_map: Option<Vec<u8>>,
        tokenizer_config: Option<Vec<u8>>,
    ) -> Result<JsFlamingo, JsError> {
        let files = Files { config, tensors, tokenizer, special_tokens_map, tokenizer_config };
        Ok(Self(Flamingo::new(files)?))
    }

    /// The answer to `GET /v1/models`.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn models(&self) -> Result<String, JsError> {
        Ok(self.0.models()?)
    }

    /// The whole answer to `POST /v1/completions`. After each token `onStep` gets a list of pieces as the server streams them, and
    /// returns a promise of whether to go on: while it is awaited the worker hears what it is told.
    ///
    /// # Errors
    /// For a request that makes no sense, if the model fails, and with what the promise is rejected with.
    pub async fn complete(
        &self,
        request: String,
        pictures: JsPictures,
        #[wasm_bindgen(js_name = onStep)] on_step: Function,
    ) -> Result<String, JsValue> {
        let failed = |error: crate::WebError| JsValue::from(JsError::from(error));
        let mut completion = self.0.complete(&request, pictures.0).map_err(failed)?;
        while let Some(pieces) = completion.step().map_err(failed)? {
            let goes_on: Promise = on_step.call1(&JsValue::NULL, &JsValue::from(pieces))?.dyn_into()?;
            if !JsFuture::from(goes_on).await?.is_truthy() {
                break;
            }
        }
        completion.finish().map_err(failed)
    }

    /// The answer to `POST /v1/score`.
    ///
    /// # Errors
    /// As [`JsFlamingo::complete`].
    pub fn score(&self, request: &str, pictures: JsPictures) -> Result<String, JsError> {
        Ok(self.0.score(request, pictures.0)?)
    }

    /// The answer to `POST /v1/attention`.
    ///
    /// # Errors
    /// As [`JsFlamingo::complete`].
    pub fn attention(&self, request: &str, pictures: JsPictures) -> Result<String, JsError> {
        Ok(self.0.attention(request, pictures.0)?)
    }
}
