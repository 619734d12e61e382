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
        let status =
            StatusCode::from_u16(self.0.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// A client's mistake that the node never sees.
pub(crate) fn user_error(code: &str, message: impl Into<String>) -> Failure {
    Failure(ApiError::new(Kind::User, code, message))
}
