//! The first process of every sandbox. See the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let Some(served) = arguments.next().and_then(|first| berth_guest::builtin(&first)) {
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    berth_sys::heap::reuse();
    berth_sys::signal::default_faults();
    let options = match berth_guest::Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => return fail(&error),
    };
    match berth_guest::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Stderr is wherever whoever starts sandboxes wants to read of this.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    let text = format!("berth-guest: {}\n", berth_guest::with_causes(error));
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    ExitCode::FAILURE
}
