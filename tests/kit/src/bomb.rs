//! A component that compiles for ever.

/// One function with more blocks and variables than any compiler likes, small enough to pass the structural check,
/// inside of a whole toolbox. Each `salt` makes other bytes.
pub fn compile_bomb(salt: u32) -> Vec<u8> {
    const LOCALS: usize = 9_000;
    let locals = "i64 ".repeat(LOCALS);
    let body: String = (0..LOCALS * 3)
        .map(|n| {
            let (a, b) = (n * 7919 % LOCALS, n * 104_729 % LOCALS);
            format!("(br_if 0 (i64.eqz (local.get {a}))) (local.set {b} (i64.mul (local.get {a}) (local.get {b})))\n")
        })
        .collect();
    let bomb = format!("(core module $bomb (func (local {locals}) (drop (i32.const {salt})) (loop {body})))");
    let toolbox = include_str!("../../guests/wat/multi_memory.wat");
    wat::parse_str(toolbox.replacen("(component", &format!("(component\n{bomb}"), 1)).unwrap()
}
