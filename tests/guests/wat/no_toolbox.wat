;; A component that exports a type, and nothing that can be called.
(component
  (type $answer (list u8))
  (export "answer" (type $answer)))
