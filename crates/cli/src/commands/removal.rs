//! Removing many things: all that can be are, and the first failure is the command's.

use crate::Session;
use crate::failure::Failure;

/// What has been removed so far.
pub(super) struct Removal<'s> {
    session: &'s Session,
    first_failure: Option<Failure>,
}

impl<'s> Removal<'s> {
    pub(super) fn new(session: &'s Session) -> Self {
        Self { session, first_failure: None }
    }

    /// Notes how one went: its name goes to stdout, a failure that is not the first to stderr.
    pub(super) fn note(
        &mut self,
        name: &str,
        result: Result<(), berth_client::Error>,
    ) -> Result<(), Failure> {
        match (result, &self.first_failure) {
            (Ok(()), _) if self.session.output.is_json() => {}
            (Ok(()), _) => self.session.output.line(name)?,
            (Err(error), None) => self.first_failure = Some(error.into()),
            (Err(error), Some(_)) => Failure::from(error).print(),
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        self.first_failure.map_or(Ok(()), Err)
    }
}
