//! The program as a process: started, killed, started again; and the READMEs, followed line by line.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod chaos;
mod process;
mod serves;
mod survives;
mod tools;
mod upstream;
mod walks;
