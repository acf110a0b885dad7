//! The description of the API, OpenAPI 3.1, from the code: the calls from their handlers, the frames of the socket as
//! components. `docs/openapi.json` is this text; a test compares them.

use std::collections::HashSet;

use schemas::frame::{ClientFrame, Control, EventView, ServerFrame};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Required, Response, Schema};
use utoipa::{Modify, OpenApi as _};

use crate::error::Problem;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Posthaste",
        description = "Self-hosted real-time messaging that never loses, doubles or reorders a message, and proves it.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Problem, ClientFrame, ServerFrame, EventView, Control)),
    security(("bearer" = [])),
    modifiers(&Bearer),
    tags(
        (name = "auth", description = "Signing up, in and out"),
        (name = "me", description = "Oneself"),
        (name = "users", description = "Other people"),
        (name = "rooms", description = "Rooms"),
        (name = "members", description = "Who is in a room"),
        (name = "messages", description = "Messages, history, receipts"),
        (name = "socket", description = "The live connection"),
    ),
)]
struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        api.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// What stands around the calls.
pub(crate) fn base() -> OpenApi {
    Base::openapi()
}

/// The whole description.
pub fn document() -> OpenApi {
    let mut api = crate::routes::api().into_openapi();
    let empty_will_do = forms_of_nothing(&api);
    for item in api.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            if let Some(RefOr::T(body)) = &mut operation.request_body
                && empty_will_do.contains(&form_of(body).unwrap_or_default())
            {
                body.required = Some(Required::False);
            }
            let responses = &mut operation.responses.responses;
            responses.entry("default".into()).or_insert_with(|| Response::new("A problem (RFC 9457)").into());
            for (status, response) in responses {
                // Every problem has the same shape; handlers name the codes alone.
                if let RefOr::T(response) = response
                    && (status == "default" || status.starts_with(['4', '5']))
                {
                    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
                    response.content.insert("application/problem+json".into(), problem.into());
                }
            }
        }
    }
    api
}

/// The forms that `{}` fits, for which no body at all stands.
fn forms_of_nothing(api: &OpenApi) -> HashSet<String> {
    let forms = api.components.iter().flat_map(|components| &components.schemas);
    let fits = |form: &RefOr<Schema>| matches!(form, RefOr::T(Schema::Object(object)) if object.required.is_empty());
    forms.filter(|(_, form)| fits(form)).map(|(name, _)| name.clone()).collect()
}

/// The name of a body's form.
fn form_of(body: &RequestBody) -> Option<String> {
    let RefOr::T(content) = body.content.get("application/json")? else { return None };
    let Some(RefOr::Ref(form)) = &content.schema else { return None };
    form.ref_location.rsplit('/').next().map(str::to_owned)
}

/// The text of `docs/openapi.json`.
pub fn text() -> Result<String, serde_json::Error> {
    document().to_pretty_json().map(|json| json + "\n")
}
