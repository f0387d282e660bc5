//! `belljar`, the program. All of it is in the library.

fn main() -> std::process::ExitCode {
    belljar::cli::main()
}
