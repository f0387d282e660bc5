//! The compile child of this package's tests and bench. The product starts its own program with another argument.

fn main() -> std::process::ExitCode {
    tool_executor::compile::child_main()
}
