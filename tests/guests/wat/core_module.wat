;; A core module: WebAssembly, but no component.
(module
  (memory (export "memory") 1)
  (func (export "call") (result i32) (i32.const 42)))
