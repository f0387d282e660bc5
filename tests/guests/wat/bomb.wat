;; A compile bomb: each component makes ten instances of the one before, so that a small file asks for a thousand million
;; instances. Beside them it is a whole toolbox.
(component
  (component $level0 (core module $empty) (core instance (instantiate $empty)))
  (component $level1
    (instance (instantiate $level0)) (instance (instantiate $level0)) (instance (instantiate $level0)) (instance (instantiate $level0)) (instance (instantiate $level0))
    (instance (instantiate $level0)) (instance (instantiate $level0)) (instance (instantiate $level0)) (instance (instantiate $level0)) (instance (instantiate $level0)))
  (component $level2
    (instance (instantiate $level1)) (instance (instantiate $level1)) (instance (instantiate $level1)) (instance (instantiate $level1)) (instance (instantiate $level1))
    (instance (instantiate $level1)) (instance (instantiate $level1)) (instance (instantiate $level1)) (instance (instantiate $level1)) (instance (instantiate $level1)))
  (component $level3
    (instance (instantiate $level2)) (instance (instantiate $level2)) (instance (instantiate $level2)) (instance (instantiate $level2)) (instance (instantiate $level2))
    (instance (instantiate $level2)) (instance (instantiate $level2)) (instance (instantiate $level2)) (instance (instantiate $level2)) (instance (instantiate $level2)))
  (component $level4
    (instance (instantiate $level3)) (instance (instantiate $level3)) (instance (instantiate $level3)) (instance (instantiate $level3)) (instance (instantiate $level3))
    (instance (instantiate $level3)) (instance (instantiate $level3)) (instance (instantiate $level3)) (instance (instantiate $level3)) (instance (instantiate $level3)))
  (component $level5
    (instance (instantiate $level4)) (instance (instantiate $level4)) (instance (instantiate $level4)) (instance (instantiate $level4)) (instance (instantiate $level4))
    (instance (instantiate $level4)) (instance (instantiate $level4)) (instance (instantiate $level4)) (instance (instantiate $level4)) (instance (instantiate $level4)))
  (component $level6
    (instance (instantiate $level5)) (instance (instantiate $level5)) (instance (instantiate $level5)) (instance (instantiate $level5)) (instance (instantiate $level5))
    (instance (instantiate $level5)) (instance (instantiate $level5)) (instance (instantiate $level5)) (instance (instantiate $level5)) (instance (instantiate $level5)))
  (component $level7
    (instance (instantiate $level6)) (instance (instantiate $level6)) (instance (instantiate $level6)) (instance (instantiate $level6)) (instance (instantiate $level6))
    (instance (instantiate $level6)) (instance (instantiate $level6)) (instance (instantiate $level6)) (instance (instantiate $level6)) (instance (instantiate $level6)))
  (component $level8
    (instance (instantiate $level7)) (instance (instantiate $level7)) (instance (instantiate $level7)) (instance (instantiate $level7)) (instance (instantiate $level7))
    (instance (instantiate $level7)) (instance (instantiate $level7)) (instance (instantiate $level7)) (instance (instantiate $level7)) (instance (instantiate $level7)))
  (component $level9
    (instance (instantiate $level8)) (instance (instantiate $level8)) (instance (instantiate $level8)) (instance (instantiate $level8)) (instance (instantiate $level8))
    (instance (instantiate $level8)) (instance (instantiate $level8)) (instance (instantiate $level8)) (instance (instantiate $level8)) (instance (instantiate $level8)))
  (instance (instantiate $level9))
  (core module $main
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 0x1000))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $free)
      (global.set $free (i32.and (i32.add (i32.add (global.get $free) (local.get 3)) (i32.const 7)) (i32.const -8))))
    (func (export "describe") (result i32) (i32.const 0x100))
    (func (export "call") (param i32 i32 i32 i32) (result i32) (i32.const 0x160))
    ;; description: functions (at 0x120, 1), requires (none)
    (data (i32.const 0x100) "\20\01\00\00" "\01\00\00\00")
    ;; function: name (0x10, 3), description (0x20, 13), input-schema (0x40, 46), output-schema (none)
    (data (i32.const 0x120) "\10\00\00\00" "\03\00\00\00" "\20\00\00\00" "\0d\00\00\00" "\40\00\00\00" "\2e\00\00\00")
    (data (i32.const 0x10) "run")
    (data (i32.const 0x20) "Made by hand.")
    (data (i32.const 0x40) "{\"type\":\"object\",\"additionalProperties\":false}")
    ;; call-result: content (at 0x180, 1), structured (none), is-error (false); content: text (0x1a0, 4)
    (data (i32.const 0x160) "\80\01\00\00" "\01\00\00\00")
    (data (i32.const 0x184) "\a0\01\00\00" "\04\00\00\00")
    (data (i32.const 0x1a0) "done"))
  (core instance $main (instantiate $main))
  (type $function (record (field "name" string) (field "description" string) (field "input-schema" string) (field "output-schema" (option string))))
  (type $description (record (field "functions" (list $function)) (field "requires" (option string))))
  (type $image (record (field "media-type" string) (field "data" (list u8))))
  (type $content (variant (case "text" string) (case "image" $image)))
  (type $call-result (record (field "content" (list $content)) (field "structured" (option string)) (field "is-error" bool)))
  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (alias core export $main "describe" (core func $main-describe))
  (alias core export $main "call" (core func $main-call))
  (func $describe (result $description) (canon lift (core func $main-describe) (memory $memory)))
  (func $call (param "function" string) (param "arguments" string) (result $call-result)
    (canon lift (core func $main-call) (memory $memory) (realloc $realloc)))
  (instance $toolbox
    (export "function" (type $function))
    (export "description" (type $description))
    (export "image" (type $image))
    (export "content" (type $content))
    (export "call-result" (type $call-result))
    (export "describe" (func $describe))
    (export "call" (func $call)))
  (export "belljar:tool/toolbox@0.1.0" (instance $toolbox)))
