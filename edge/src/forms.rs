//! What the description of the API says of texts and numbers in requests: the bounds that handlers hold them to, so that a
//! client can know beforehand what is taken. Describes only; the checks stand in `accounts` and the handlers.

use schemas::limits::CREATE_MEMBERS_MAX;
use utoipa::PartialSchema;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{KnownFormat, Object, RefOr, SchemaFormat};

use crate::accounts::{EMAIL_MAX_BYTES, NAME_CHARS};
use crate::auth::password::{PASSWORD_MAX_BYTES, PASSWORD_MIN_CHARS};

/// No control characters but line feeds.
const TEXT: &str = r"^[^\u0000-\u0009\u000b-\u001f\u007f-\u009f]*$";
/// The same, with something to see.
const NAME: &str = concat!(
    r"^[^\u0000-\u0009\u000b-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f]",
    r"[^\u0000-\u0009\u000b-\u001f\u007f-\u009f]*$"
);
const USERNAME: &str = "^[A-Za-z0-9_-][A-Za-z0-9._-]{1,30}[A-Za-z0-9_-]$";
const HANDLE: &str = "^([a-z0-9_-]{3,32})?$";
const EMAIL: &str = concat!(
    r"^[^\s@\u0000-\u001f\u007f-\u009f]+",
    r"@[^\s@.\u0000-\u001f\u007f-\u009f]([^\s@\u0000-\u001f\u007f-\u009f]*[^\s@.\u0000-\u001f\u007f-\u009f])?$"
);
const MIME: &str = "^[ -.0-~]+/[ -~]+$";
/// Canonical: what is left over of the last character is 0.
const BASE64: &str = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";
const UUID_V7: &str = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$";

fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn or_null(string: ObjectBuilder) -> Object {
    string.schema_type(SchemaType::from_iter([Type::String, Type::Null])).build()
}

/// A text that may be left out.
pub(crate) fn text<const MAX_CHARS: usize>() -> Object {
    or_null(string().max_length(Some(MAX_CHARS)).pattern(Some(TEXT)))
}

fn some_name(max_chars: usize) -> ObjectBuilder {
    string().min_length(Some(1)).max_length(Some(max_chars)).pattern(Some(NAME))
}

/// What people call something.
pub(crate) fn name<const MAX_CHARS: usize>() -> Object {
    some_name(MAX_CHARS).build()
}

/// The same where it may be left out.
pub(crate) fn optional_name<const MAX_CHARS: usize>() -> Object {
    or_null(some_name(MAX_CHARS))
}

fn some_username() -> ObjectBuilder {
    let about = "3 to 32 letters, digits, hyphens, underscores and, inside, dots; kept in lower case.";
    let (min, max) = (Some(*NAME_CHARS.start()), Some(*NAME_CHARS.end()));
    string().description(Some(about)).min_length(min).max_length(max).pattern(Some(USERNAME))
}

/// A username for an account.
pub(crate) fn username() -> Object {
    some_username().build()
}

/// The same where it may be left out.
pub(crate) fn optional_username() -> Object {
    or_null(some_username())
}

/// A room's handle; an empty one stands for none.
pub(crate) fn handle() -> Object {
    let about = "3 to 32 lower-case letters, digits, hyphens or underscores; unique. Empty: none.";
    or_null(string().description(Some(about)).max_length(Some(*NAME_CHARS.end())).pattern(Some(HANDLE)))
}

fn some_email() -> ObjectBuilder {
    string().max_length(Some(EMAIL_MAX_BYTES)).pattern(Some(EMAIL))
}

/// An e-mail address that may be left out.
pub(crate) fn optional_email() -> Object {
    or_null(some_email())
}

/// A password to set.
pub(crate) fn new_password() -> Object {
    let about = "8 characters to 1,024 bytes.";
    let (min, max) = (Some(PASSWORD_MIN_CHARS), Some(PASSWORD_MAX_BYTES));
    string().description(Some(about)).min_length(min).max_length(max).format(password_format()).build()
}

fn password_format() -> Option<SchemaFormat> {
    Some(SchemaFormat::KnownFormat(KnownFormat::Password))
}

/// E-mail address or username, with the password.
pub(crate) fn sign_in<const DEVICE_NAME_MAX_CHARS: usize>() -> RefOr<Schema> {
    let password = string().max_length(Some(PASSWORD_MAX_BYTES)).format(password_format()).build();
    let with = |title: &'static str, password: Object| {
        let object = ObjectBuilder::new().title(Some(title)).schema_type(Type::Object);
        let device_name = text::<DEVICE_NAME_MAX_CHARS>();
        object.property("password", password).required("password").property("device_name", device_name)
    };
    // An unknown address is signed up with this password.
    let by_email = with("By e-mail address", new_password()).property("email", some_email()).required("email");
    let by_username = with("By username", password)
        .property("username", string())
        .required("username")
        .property("email", ObjectBuilder::new().schema_type(Type::Null));
    AnyOfBuilder::new().item(by_email).item(by_username).into()
}

/// Who a new room begins with.
pub(crate) fn members() -> Schema {
    let about = "Members beside oneself; at most 1,000.";
    let members = ArrayBuilder::new().items(schemas::UserId::schema());
    members.description(Some(about)).max_items(Some(CREATE_MEMBERS_MAX)).into()
}

fn command_id() -> ObjectBuilder {
    string().pattern(Some(UUID_V7)).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
}

/// The id of a command in a header.
pub(crate) fn idempotency_key() -> Object {
    command_id().build()
}

/// The id of a message, where a header does not carry it.
pub(crate) fn client_msg_id() -> Object {
    let about = "UUIDv7, the same at every try; an Idempotency-Key stands in for it.";
    or_null(command_id().description(Some(about)))
}

/// A place in a room.
pub(crate) fn seq() -> Object {
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(i64::MAX));
    number.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64))).build()
}

/// A seq that exists at best; `null` for none.
pub(crate) fn optional_seq() -> Object {
    let number = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::Integer, Type::Null]));
    let number = number.description(Some("The message that it answers.")).minimum(Some(1)).maximum(Some(i64::MAX));
    number.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64))).build()
}

/// What a message may hold.
pub(crate) fn content() -> Schema {
    let mime =
        string().description(Some("MIME type.")).max_length(Some(crate::routes::MIME_MAX_BYTES)).pattern(Some(MIME));
    let content = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("What a message holds, 64 KiB at most. Chat text is `text/plain` with a `body`."))
        .property("type", mime)
        .required("type")
        .property("body", or_null(string().description(Some("Text."))))
        .property("data", or_null(string().description(Some("Bytes, base64.")).pattern(Some(BASE64))))
        .property("media", or_null(string().description(Some("Id of an uploaded medium."))));
    let with = |part: &str| {
        let any = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
        any.property(part, string()).required(part)
    };
    let parts = AnyOfBuilder::new().item(with("body")).item(with("data")).item(with("media"));
    AllOfBuilder::new().item(content).item(parts).into()
}
