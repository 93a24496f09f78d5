"""Host profiles: YAML -> `liborch.specs.HostProfile`, host names, and the shell procedures of profiles.

Reading order: `find` (a name -> a profile), `load` (a file -> profiles, both forms), `fields` (one value), `nodes`
(bytes -> YAML nodes with line numbers, and every defence against hostile files). `names` lists host names without
importing any of them, for completion. `procedures` renders command lists into a shell script and reads back what it did.

Nothing here connects to anything, reads the environment or runs a program.
"""
