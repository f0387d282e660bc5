//! `belljar`, the program. All of it is in the library.

/// Costs a turn a tenth less of the host's processor than the system's, and gives back what a burst of large uploads took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    belljar::cli::main()
}
