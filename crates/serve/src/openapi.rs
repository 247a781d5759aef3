//! The API's description, made of the very types and routes.

use utoipa::OpenApi;

use crate::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "OpenFlamingo",
        description = "Few-shot prompts of pictures and text, in the forms of OpenAI's API. Fields that are not listed are \
                       refused."
    ),
    paths(
        routes::completions,
        routes::chat,
        routes::score,
        routes::embeddings,
        routes::attention,
        routes::models,
        routes::model,
        routes::health,
        routes::ready,
        routes::metrics,
    )
)]
struct Api;

/// The OpenAPI document, as JSON.
pub fn document() -> String {
    // It is made of constants: either it can always be written or never, which a test would find.
    Api::openapi().to_json().unwrap_or_default()
}
