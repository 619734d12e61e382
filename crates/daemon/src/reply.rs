//! How a failure leaves the daemon.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_types::error::{ApiError, ErrorBody, Kind};

/// An [`ApiError`] on its way out.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

/// What a handler gives back.
pub(crate) type Reply<T> = Result<T, Failure>;

impl From<berth_node::Error> for Failure {
    fn from(error: berth_node::Error) -> Self {
        let error = ApiError::from(&error);
        if error.kind == Kind::Internal {
            tracing::error!(
                code = error.code,
                message = error.message,
                "a request failed for a fault of Berth's own"
            );
        }
        Failure(error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (status(&self.0), Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// The status of an error's kind, but for where HTTP has a word for the very thing.
fn status(error: &ApiError) -> StatusCode {
    match error.code.as_str() {
        "unsupported_encoding" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "not_listening" | "bad_gateway" => StatusCode::BAD_GATEWAY,
        _ => StatusCode::from_u16(error.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// A client's mistake that the node never sees.
pub(crate) fn user_error(code: &str, message: impl Into<String>) -> Failure {
    Failure(ApiError::new(Kind::User, code, message))
}
