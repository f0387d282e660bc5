;; A typed export that takes a handle: no JSON stands for one.
(component
  (core module $main (func (export "take") (param i32)))
  (core instance $main (instantiate $main))
  (type $blob' (resource (rep i32)))
  (export $blob "blob" (type $blob'))
  (func (export "keep") (param "it" (own $blob)) (canon lift (core func $main "take"))))
