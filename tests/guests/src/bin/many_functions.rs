//! Lists a function more than a tool may have.

use belljar_tool::{Answer, Tool, toolbox};

struct Numbered<const N: usize>;

const NAMES: [[u8; 4]; 129] = {
    let mut names = [*b"f000"; 129];
    let mut n = 0;
    while n < names.len() {
        names[n] = [b'f', b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8];
        n += 1;
    }
    names
};

impl<const N: usize> Tool for Numbered<N> {
    const NAME: &'static str = match std::str::from_utf8(&NAMES[N]) {
        Ok(name) => name,
        Err(_) => "",
    };
    const DESCRIPTION: &'static str = "One of many.";

    fn input_schema() -> String {
        r#"{"type": "object"}"#.into()
    }

    fn output_schema() -> Option<String> {
        None
    }

    fn call(_: &str) -> Answer {
        Answer::text("called")
    }
}

macro_rules! all {
    ($($n:literal)+) => { toolbox!($(Numbered<$n>),+); };
}

all! {
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40
    41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78
    79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112
    113 114 115 116 117 118 119 120 121 122 123 124 125 126 127 128
}
fn main() {}
