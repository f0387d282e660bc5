//! The program `load`: see the library.

#![expect(clippy::print_stdout, reason = "a failure stands below the tables")]

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match load::run(std::env::args().skip(1)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
